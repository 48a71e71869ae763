from __future__ import annotations

import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish

from shardload.errors import CorruptGGUF, MissingSplit
from shardload.gguf import GGUFFile

NAMES = [f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in three files, two tensors each."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    writer.add_name("split")
    writer.add_token_list(["a", "b"])
    for index in range(6):
        writer.add_tensor(f"blk.{index}.weight", np.full((4, 8), index, np.float32))
    finish(writer)
    return [tmp_path / name for name in NAMES]


def patch(path: Path, key: str, value: bytes) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.index(key.encode()) + len(key) + 4
    raw[at : at + len(value)] = value
    path.write_bytes(raw)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_part_opens_the_whole(parts: list[Path], number: int) -> None:
    with GGUFFile(parts[number]) as file:
        assert file.path == parts[number]
        assert file.paths == tuple(parts)
        assert file.name == "split"
        assert file.vocabulary_size == 2
        assert file.size_bytes == sum(path.stat().st_size for path in parts)
        assert [tensor.part for tensor in file.tensors.values()] == [0, 0, 1, 1, 2, 2]
        for index, name in enumerate(file.tensors):
            assert np.all(file.tensor(name) == index)
        assert file.parameter_count == 6 * 32
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert list(tokens) == ["a", "b"]  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_part_is_named(parts: list[Path], missing: int) -> None:
    parts[missing].unlink()
    there = parts[(missing + 1) % 3]
    with pytest.raises(MissingSplit, match=NAMES[missing]) as caught:
        GGUFFile(there)
    assert caught.value.missing == str(parts[missing])


def test_renamed_part(parts: list[Path]) -> None:
    other = parts[0].with_name("other.gguf")
    parts[0].rename(other)
    with pytest.raises(CorruptGGUF, match=r"its name must end in -00001-of-00003\.gguf"):
        GGUFFile(other)


def test_exchanged_parts(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    with pytest.raises(CorruptGGUF, match="says it is part 3, and its name says part 2"):
        GGUFFile(parts[0])


def test_parts_of_different_models(parts: list[Path]) -> None:
    patch(parts[1], "split.count", struct.pack("<H", 7))
    with pytest.raises(CorruptGGUF, match="says it is one of 7 parts; the others say 3"):
        GGUFFile(parts[0])


def test_wrong_number_of_tensors(parts: list[Path]) -> None:
    patch(parts[0], "split.tensors.count", struct.pack("<i", 9))
    with pytest.raises(CorruptGGUF, match="says that its parts have 9 tensors; they have 6"):
        GGUFFile(parts[1])
    patch(parts[0], "split.tensors.count", struct.pack("<i", -1))
    with pytest.raises(CorruptGGUF, match=r"split\.tensors\.count is -1"):
        GGUFFile(parts[1])


def test_same_tensor_in_two_parts(parts: list[Path]) -> None:
    raw = parts[1].read_bytes()
    parts[1].write_bytes(raw.replace(b"blk.2.weight", b"blk.0.weight"))
    with pytest.raises(CorruptGGUF, match=r"'blk\.0\.weight', which model-00001-of-00003\.gguf has too"):
        GGUFFile(parts[0])


def test_broken_part_is_named(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:-64])
    with pytest.raises(CorruptGGUF, match=NAMES[2]):
        GGUFFile(parts[0])


def test_name_of_a_split_without_its_keys_is_a_whole_model(tmp_path: Path, parts: list[Path]) -> None:
    path = tmp_path / "alone-00001-of-00009.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    finish(writer)
    with GGUFFile(path) as file:
        assert file.paths == (path,)
