"""What the format fixes: magic, versions, value types, tensor types, and the limits that we set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**63 - 1

# No real header comes near these; they bound the time and memory that a hostile one can cost.
MAX_HEADER_BYTES = 128 * 2**20
MAX_KEYS = 2**16
MAX_TENSORS = 2**20
MAX_NAME_BYTES = 2**16 - 1
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 2**16


class ValueType(IntEnum):
    """The type of a metadata value, with the number it has in a file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_FORMATS: Mapping[ValueType, str] = MappingProxyType(
    {
        ValueType.UINT8: "<B",
        ValueType.INT8: "<b",
        ValueType.UINT16: "<H",
        ValueType.INT16: "<h",
        ValueType.UINT32: "<I",
        ValueType.INT32: "<i",
        ValueType.FLOAT32: "<f",
        ValueType.BOOL: "<?",
        ValueType.UINT64: "<Q",
        ValueType.INT64: "<q",
        ValueType.FLOAT64: "<d",
    }
)
"""``struct`` formats of the value types that have a fixed size."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a tensor's elements lie in the file: blocks of ``block_elements`` in ``block_bytes`` each."""

    code: int
    name: str
    block_elements: int
    block_bytes: int
    dtype: np.dtype[np.generic] | None
    """The numpy type of one element, or None where numpy has none (BF16 and everything quantised)."""

    def __str__(self) -> str:
        return self.name


# numpy's little-endian types, so that a view is right on any machine.
_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

# Where ggml and the gguf package differ, ggml decides: it is what reads the tensors.
_GGML_SIZES = {9: ("Q8_1", 32, 36), 42: ("Q2_0", 64, 18)}
_GGML_FILE_TYPES = {41: "Q2_0"}


def _tensor_types() -> dict[int, TensorType]:
    sizes = {int(code): (code.name, *size) for code, size in GGML_QUANT_SIZES.items()} | _GGML_SIZES
    return {
        code: TensorType(code, name, elements, size, np.dtype(_DTYPES[name]) if name in _DTYPES else None)
        for code, (name, elements, size) in sorted(sizes.items())
    }


TENSOR_TYPES: Mapping[int, TensorType] = MappingProxyType(_tensor_types())
"""Every tensor type of the ggml we stand on, by its number in a file."""


def file_type_label(file_type: int) -> str | None:
    """The short name of a ``general.file_type``, such as ``Q4_K_M``; None if it has none."""
    try:
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return _GGML_FILE_TYPES.get(file_type)
