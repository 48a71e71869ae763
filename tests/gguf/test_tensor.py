"""Every tensor type, element for element against the gguf package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish

from shardload.errors import UnsupportedGGUF
from shardload.gguf import GGUFFile
from shardload.gguf.constants import TENSOR_TYPES

NATIVE = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
WRITTEN = [kind for kind in gguf.GGML_QUANT_SIZES if kind.name != "Q8_1"]
DECODED = {kind for kind in WRITTEN if kind in gguf.quants._type_traits} | {
    kind for kind in WRITTEN if kind.name in NATIVE
}


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("types") / "types.gguf"
    generator = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    for kind in WRITTEN:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if kind.name in NATIVE:
            writer.add_tensor(kind.name, generator.integers(-9, 9, (3, 2, 5)).astype(NATIVE[kind.name]))
        else:
            blocks = generator.integers(0, 256, (2, 3, 2 * size), dtype=np.uint8)
            writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        assert elements <= 256
    finish(writer)
    return path


@pytest.fixture
def file(every_type: Path) -> Iterator[GGUFFile]:
    with GGUFFile(every_type) as opened:
        yield opened


def test_tensors_are_the_readers(file: GGUFFile, every_type: Path) -> None:
    reader = gguf.GGUFReader(every_type)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors] == [kind.name for kind in WRITTEN]
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.type.code == theirs.tensor_type
        assert list(ours.ne) == theirs.shape.tolist()
        assert ours.shape == ours.ne[::-1]
        assert (ours.offset, ours.nbytes, ours.elements) == (
            theirs.data_offset,
            theirs.n_bytes,
            theirs.n_elements,
        )
        view = file.tensor(theirs.name)
        assert view.dtype == theirs.data.dtype
        np.testing.assert_array_equal(view, theirs.data)
        assert not view.flags.writeable
        assert not view.flags.owndata


@pytest.mark.parametrize("kind", sorted(DECODED), ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bits are also infinities
def test_dequantized_as_the_package_does(file: GGUFFile, kind: gguf.GGMLQuantizationType) -> None:
    numbers = file.tensor(kind.name, dequantize=True)
    assert numbers.dtype == np.float32
    assert numbers.shape == file.tensors[kind.name].shape
    if kind.name in NATIVE:
        np.testing.assert_array_equal(numbers, file.tensor(kind.name).astype(np.float32))
    else:
        np.testing.assert_array_equal(numbers, gguf.quants.dequantize(np.array(file.tensor(kind.name)), kind))


def test_types_that_nothing_decodes_are_named(file: GGUFFile) -> None:
    for kind in WRITTEN:
        if kind not in DECODED:
            with pytest.raises(
                UnsupportedGGUF, match=f"'{kind.name}' is {kind.name}, which cannot be turned"
            ):
                file.tensor(kind.name, dequantize=True)


def test_types_of_ggml_that_the_package_lacks(tmp_path: Path, every_type: Path) -> None:
    missing = [known for code, known in TENSOR_TYPES.items() if code not in gguf.GGML_QUANT_SIZES]
    for known in missing:
        path = tmp_path / "new.gguf"
        blocks = np.arange(2 * known.block_bytes, dtype=np.uint8).reshape(2, -1)
        writer = gguf.GGUFWriter(path, "llama")
        # As F32 of the same size would be written, with the number of the type put in afterwards.
        writer.add_tensor("unlikely-name", blocks.view(np.int8), raw_dtype=gguf.GGMLQuantizationType.I8)
        finish(writer)
        raw = bytearray(path.read_bytes())
        at = raw.index(b"unlikely-name") + len("unlikely-name") + 4
        raw[at : at + 8] = known.block_elements.to_bytes(8, "little")
        raw[at + 16 : at + 20] = known.code.to_bytes(4, "little")
        path.write_bytes(raw)
        with GGUFFile(path) as opened:
            np.testing.assert_array_equal(opened.tensor("unlikely-name"), blocks)
            with pytest.raises(UnsupportedGGUF, match=f"is {known.name}, which cannot be turned"):
                opened.tensor("unlikely-name", dequantize=True)
