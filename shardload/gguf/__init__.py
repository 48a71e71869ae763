"""The GGUF file format: headers, tensors, splits; nothing is read before it is asked for."""

from shardload.gguf.arrays import MetadataArray
from shardload.gguf.constants import TensorType, ValueType
from shardload.gguf.file import GGUFFile, block_name
from shardload.gguf.header import Value
from shardload.gguf.tensor import TensorInfo

__all__ = ["GGUFFile", "MetadataArray", "TensorInfo", "TensorType", "Value", "ValueType", "block_name"]
