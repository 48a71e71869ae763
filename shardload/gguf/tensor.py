"""A tensor's place in a file, and numpy views of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize as dequantize_blocks

from shardload.errors import CorruptGGUF, UnsupportedGGUF
from shardload.gguf.constants import MAX_ELEMENTS, TENSOR_TYPES, TensorType
from shardload.gguf.mapping import FileMapping


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of one tensor."""

    name: str
    type: TensorType
    ne: tuple[int, ...]
    """Elements per dimension as ggml and the file order them: the contiguous one first."""
    offset: int
    """Of its first byte, from the start of the file that holds it."""
    nbytes: int
    part: int = 0
    """Which file of a split model holds it; 0 for a model in one file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension in numpy's order: the contiguous one last."""
        return self.ne[::-1]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.ne)


def tensor_nbytes(path: str, name: str, tensor_type: TensorType, ne: tuple[int, ...]) -> int:
    """Bytes of a tensor; raises CorruptGGUF for dimensions that cannot be."""
    elements = math.prod(ne)
    if elements == 0:
        raise CorruptGGUF(path, f"tensor {name!r} has a dimension of zero: {list(ne)}")
    if elements > MAX_ELEMENTS:
        raise CorruptGGUF(path, f"tensor {name!r} has absurd dimensions: {list(ne)}")
    row = ne[0] if ne else 1
    if row % tensor_type.block_elements:
        raise CorruptGGUF(
            path,
            f"tensor {name!r} has rows of {row} elements, which are no whole number of "
            f"{tensor_type} blocks of {tensor_type.block_elements}",
        )
    return elements // tensor_type.block_elements * tensor_type.block_bytes


def tensor_type(path: str, name: str, code: int) -> TensorType:
    """The type of that number; raises UnsupportedGGUF naming the tensor."""
    try:
        return TENSOR_TYPES[code]
    except KeyError:
        raise UnsupportedGGUF(
            path, f"tensor {name!r} is of type {code}, which this build does not know"
        ) from None


def check_layout(path: str, tensors: Iterable[TensorInfo], size_bytes: int) -> None:
    """Raise CorruptGGUF where tensors reach out of the file or into each other."""
    end, previous = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset + tensor.nbytes > size_bytes:
            raise CorruptGGUF(
                path,
                f"tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes} and the file has "
                f"{size_bytes}: it is cut short",
            )
        if tensor.offset < end:
            raise CorruptGGUF(path, f"tensors {previous!r} and {tensor.name!r} overlap")
        end, previous = tensor.offset + tensor.nbytes, tensor.name


def tensor_view(mapping: FileMapping, tensor: TensorInfo) -> np.ndarray[Any, np.dtype[Any]]:
    """A read-only array on the mapped bytes; see `GGUFFile.tensor` for its shape."""
    data = mapping.view(tensor.offset, tensor.nbytes)
    kind = tensor.type
    if kind.dtype is not None:
        return np.frombuffer(data, kind.dtype).reshape(tensor.shape)
    row_bytes = (tensor.ne[0] if tensor.ne else 1) // kind.block_elements * kind.block_bytes
    return np.frombuffer(data, np.uint8).reshape((*tensor.shape[:-1], row_bytes))


def dequantized(
    path: str, tensor: TensorInfo, view: np.ndarray[Any, np.dtype[Any]]
) -> np.ndarray[Any, np.dtype[Any]]:
    """The same numbers as float32; raises UnsupportedGGUF where nothing here can decode the type."""
    if tensor.type.dtype is not None:
        return view.astype(np.float32, copy=False)
    try:
        return dequantize_blocks(view, GGMLQuantizationType(tensor.type.code))
    except (NotImplementedError, ValueError):  # ValueError: a type that is ggml's and not the package's
        raise UnsupportedGGUF(
            path, f"tensor {tensor.name!r} is {tensor.type}, which cannot be turned into float32 here"
        ) from None
