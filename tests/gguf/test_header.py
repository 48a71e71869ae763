from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardload.errors import CorruptGGUF, GGUFError, NotGGUF, UnsupportedGGUF
from shardload.gguf import GGUFFile, ValueType

Refuse = Callable[..., str]


@pytest.mark.parametrize("version", [2, 3])
def test_versions_that_are_read(write: Callable[..., Path], fuzzer: ModuleType, version: int) -> None:
    path = write([fuzzer.key("general.architecture", 8, fuzzer.text("llama"))], version=version)
    with GGUFFile(path) as file:
        assert (file.version, file.alignment, file.architecture) == (version, 32, "llama")
        assert dict(file.tensors) == {}


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (1, "version 1, which nothing reads any more"),
        (0, "version 0"),
        (4, "version 4, newer than the 3 that this build reads"),
        (2**31, "newer"),
        (3 << 24, "big-endian"),
        (2 << 24, "big-endian"),
    ],
)
def test_versions_that_are_not(refused: Refuse, version: int, reason: str) -> None:
    if version == 2**31:
        reason = "big-endian"  # its low half is zero, as of every swapped small number
    assert reason in refused(version=version, error=UnsupportedGGUF)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"GG", "has only 2 bytes"),
        (b"PK\3\4" + b"\0" * 60, "starts with 'PK.*not 'GGUF'"),
        (b"tjgg" + b"\0" * 60, "older than GGUF"),
        (bytes(range(7, 200)), "is no GGUF file"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(NotGGUF, match=reason):
        GGUFFile(path)


def test_every_truncation_is_refused(fuzzer: ModuleType, tmp_path: Path) -> None:
    whole = fuzzer.SEEDS[0]
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    with GGUFFile(path) as file:
        end = max(tensor.offset + tensor.nbytes for tensor in file.tensors.values())
    for size in range(end):
        path.write_bytes(whole[:size])
        with pytest.raises(GGUFError):
            GGUFFile(path)


@pytest.mark.parametrize("counts", [(2**64 - 1, 0), (0, 2**64 - 1), (2**40, 2**40), (3, 0), (0, 9)])
def test_absurd_counts(refused: Refuse, counts: tuple[int, int]) -> None:
    assert "claims" in refused(counts=counts)


def test_values_of_every_type(write: Callable[..., Path], fuzzer: ModuleType) -> None:
    layouts = {
        ValueType.UINT8: ("<B", 255),
        ValueType.INT8: ("<b", -1),
        ValueType.UINT16: ("<H", 2**16 - 1),
        ValueType.INT16: ("<h", -2),
        ValueType.UINT32: ("<I", 2**32 - 1),
        ValueType.INT32: ("<i", -3),
        ValueType.FLOAT32: ("<f", 0.5),
        ValueType.BOOL: ("<?", True),
        ValueType.UINT64: ("<Q", 2**64 - 1),
        ValueType.INT64: ("<q", -4),
        ValueType.FLOAT64: ("<d", 0.1),
    }
    keys = [
        fuzzer.key(kind.name, kind, struct.pack(layout, value)) for kind, (layout, value) in layouts.items()
    ]
    keys.append(fuzzer.key("text", 8, fuzzer.text("é\n")))
    keys.append(fuzzer.key("odd", 8, struct.pack("<Q", 2) + b"\xffx"))
    with GGUFFile(write(keys)) as file:
        for kind, (_, value) in layouts.items():
            assert file.metadata[kind.name] == value
            assert file.metadata_types[kind.name] is kind
        assert file.metadata["text"] == "é\n"
        assert file.metadata["odd"] == "�x"


def test_bad_keys(refused: Refuse, fuzzer: ModuleType) -> None:
    key, text, array = fuzzer.key, fuzzer.text, fuzzer.array
    one = struct.pack("<I", 1)
    assert "has the key 'a' twice" in refused([key("a", 4, one), key("a", 4, one)])
    assert "the name of key 0 is not UTF-8" in refused(
        [struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 4) + one]
    )
    assert "at most 65535" in refused([text("k" * 70_000) + struct.pack("<I", 4) + one])
    assert "unknown type 13" in refused([key("a", 13, one)])
    assert "unknown type 99" in refused([key("a", 9, array(99, 1, b"1"))])
    assert "the value of 'a'" in refused([key("a", 8, struct.pack("<Q", 2**63))])
    assert "the array 'a'" in refused([key("a", 9, array(4, 2**62, b""))])
    assert "the array 'a'" in refused([key("a", 9, array(8, 2**61, b""))])
    assert "the array 'a'" in refused([key("a", 9, array(8, 2, text("x") + struct.pack("<Q", 2**64 - 1)))])
    assert "the array 'a'" in refused([key("a", 9, array(9, 2**60, b""))])


def test_nesting_is_limited(refused: Refuse, write: Callable[..., Path], fuzzer: ModuleType) -> None:
    def nested(depth: int) -> bytes:
        value = fuzzer.array(0, 1, b"\7")
        for _ in range(depth):
            value = fuzzer.array(9, 1, value)
        return bytes(value)

    with GGUFFile(write([fuzzer.key("a", 9, nested(3))])) as file:
        value: Any = file.metadata["a"]
        assert value.tolist() == [[[[7]]]]
    assert "deeper than 4" in refused([fuzzer.key("a", 9, nested(4))])
    assert "deeper than 4" in refused([fuzzer.key("a", 9, nested(2000))])
    many = fuzzer.array(9, 70_000, fuzzer.array(0, 0, b"") * 70_000)
    assert "more than 65536 arrays" in refused([fuzzer.key("a", 9, many)])


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**32 - 1])
def test_alignments_that_are_none(refused: Refuse, fuzzer: ModuleType, alignment: int) -> None:
    key = fuzzer.key("general.alignment", 4, struct.pack("<I", alignment))
    assert "no power of two" in refused([key])


@pytest.mark.parametrize("kind", [5, 7, 10])
def test_alignment_is_a_uint32(refused: Refuse, fuzzer: ModuleType, kind: int) -> None:
    key = fuzzer.key("general.alignment", kind, struct.pack("<Q", 32))
    assert "not a 32-bit unsigned number" in refused(
        [key] if kind == 10 else [key[: -4 if kind == 5 else -7]]
    )


def test_bad_tensors(refused: Refuse, fuzzer: ModuleType) -> None:
    tensor = fuzzer.tensor

    def why(*tensors: bytes, data: int = 4096, error: type[Exception] = CorruptGGUF) -> str:
        return refused([], tensors, data=data, error=error)

    assert "two tensors named 'a'" in why(tensor("a", (4,), 0, 0), tensor("a", (4,), 0, 32))
    assert "'a' claims 5 dimensions" in why(tensor("a", (1,) * 5, 0, 0))
    assert "claims 4294967295 dimensions" in why(struct.pack("<QcI", 1, b"a", 2**32 - 1) + b"\0" * 64)
    assert "'a' has a dimension of zero: [4, 0]" in why(tensor("a", (4, 0), 0, 0))
    assert "'a' has absurd dimensions" in why(tensor("a", (2**62, 4), 0, 0))
    assert "'a' has absurd dimensions" in why(tensor("a", (2**64 - 1,) * 4, 0, 0))
    assert "'a' ends at byte" in why(tensor("a", (2**62,), 0, 0))
    assert "'a' ends at byte" in why(tensor("a", (1025,), 0, 0))
    assert "'a' ends at byte" in why(tensor("a", (1,), 0, 2**64 - 32))
    assert "'a' is at offset 8, which is not aligned to 32" in why(tensor("a", (4,), 0, 8))
    assert "'a' has rows of 33 elements" in why(tensor("a", (33, 32), 8, 0))
    assert "tensors 'a' and 'b' overlap" in why(tensor("b", (4,), 0, 32), tensor("a", (9,), 0, 0))
    assert "overlap" in why(tensor("a", (4,), 0, 0), tensor("b", (4,), 0, 0))
    for code in (4, 31, 38, 43, 2**32 - 1):
        assert f"'odd' is of type {code}" in why(tensor("odd", (4,), code, 0), error=UnsupportedGGUF)


def test_gaps_and_scalars_are_fine(write: Callable[..., Path], fuzzer: ModuleType) -> None:
    path = write([], [fuzzer.tensor("a", (4,), 0, 64), fuzzer.tensor("b", (), 0, 0)], data=96)
    with GGUFFile(path) as file:
        assert file.tensor("a").shape == (4,)
        assert file.tensor("b").shape == ()
        assert file.tensors["a"].offset % 32 == 0


def test_alignment_moves_the_data(fuzzer: ModuleType, tmp_path: Path) -> None:
    for whole, alignment in zip(fuzzer.SEEDS, (32, 8, 256), strict=True):
        path = tmp_path / "model.gguf"
        path.write_bytes(whole)
        with GGUFFile(path) as file:
            assert file.alignment == alignment
            assert all(tensor.offset % alignment == 0 for tensor in file.tensors.values())
