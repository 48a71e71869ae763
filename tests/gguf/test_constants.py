from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import gguf
import pytest

from shardload.gguf.constants import TENSOR_TYPES, ValueType, file_type_label


def test_types_are_those_of_the_package() -> None:
    for code, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        known = TENSOR_TYPES[code]
        assert (known.name, known.block_elements) == (code.name, elements)
        # The package counts 4 bytes too many for Q8_1, which ggml has only between two operations.
        assert known.block_bytes == (36 if known.name == "Q8_1" else size)


def test_value_types_are_those_of_the_package() -> None:
    assert {value.name: value.value for value in ValueType} == {
        value.name: value.value for value in gguf.GGUFValueType
    }


def test_file_type_labels() -> None:
    assert file_type_label(15) == "Q4_K_M"
    assert file_type_label(0) == "F32"
    assert file_type_label(41) == "Q2_0"
    assert file_type_label(9999) is None


@pytest.mark.real
def test_types_are_those_of_the_installed_ggml() -> None:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    (library_path, *_) = sorted(Path(spec.origin).parent.glob("lib/*ggml-base.*"))
    library = ctypes.CDLL(str(library_path))
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    sizes = {code: (library.ggml_blck_size(code), library.ggml_type_size(code)) for code in range(43)}
    assert {code: size for code, size in sizes.items() if size[0]} == {
        code: (known.block_elements, known.block_bytes) for code, known in TENSOR_TYPES.items()
    }
