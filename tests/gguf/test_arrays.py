from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import CorruptGGUF, HandleClosed
from shardload.gguf import GGUFFile, MetadataArray, ValueType
from shardload.gguf.arrays import scan_strings, skip_strings
from shardload.gguf.reader import Cursor

tokens = st.one_of(
    st.binary(max_size=12),
    st.just(b""),
    st.just(b"\0" * 9),
    st.just(b"\x05" + b"\0" * 7),
    st.integers(250, 270).map(lambda size: b"x" * size),
)


def packed(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(string)) + string for string in strings)


def positions(strings: list[bytes]) -> list[int]:
    found, offset = [], 0
    for string in strings:
        found.append(offset)
        offset += 8 + len(string)
    return found


@given(st.lists(tokens, max_size=60), st.binary(max_size=20), st.integers(0, 5))
def test_scan_finds_every_string(strings: list[bytes], after: bytes, before: int) -> None:
    window = b"\1" * before + packed(strings) + after
    starts, end = scan_strings(window, before, len(strings))
    assert (starts - before).tolist() == positions(strings)
    assert end == len(window) - len(after)


@given(st.lists(tokens, min_size=1, max_size=40), st.data())
def test_scan_of_a_cut_window_stops_at_its_edge(strings: list[bytes], data: st.DataObject) -> None:
    whole = packed(strings)
    cut = data.draw(st.integers(0, len(whole)))
    starts, end = scan_strings(whole[:cut], 0, len(strings))
    expected = [start for start in positions(strings) if start + 8 <= cut]
    assert starts.tolist() == expected
    assert end == (expected[-1] + 8 + len(strings[len(expected) - 1]) if expected else 0)


@pytest.mark.parametrize("string", [b"", b"x" * 300, b"tok", b"\0" * 8])
def test_scan_of_many_alike(string: bytes) -> None:
    starts, end = scan_strings(packed([string] * 50_000), 0, 50_000)
    assert len(starts) == 50_000
    assert end == 50_000 * (8 + len(string))


def test_skip_goes_through_windows(tmp_path: Path) -> None:
    strings = [b"t" * (index % 40) for index in range(150_000)] + [b"y" * 3_000_000]
    data = packed(strings)
    path = tmp_path / "strings"
    path.write_bytes(data)
    with io.FileIO(path) as stream:
        reader = Cursor(stream, "x.gguf", len(data))
        skip_strings(reader, len(strings), "tokens")
        assert reader.position == len(data)
        reader = Cursor(stream, "x.gguf", len(data))
        with pytest.raises(CorruptGGUF, match="tokens at byte"):
            skip_strings(reader, len(strings) + 1, "tokens")


@pytest.fixture
def arrays(write: Callable[..., Path], fuzzer: ModuleType) -> Path:
    key, array, text = fuzzer.key, fuzzer.array, fuzzer.text
    return write(
        [
            key(
                "words",
                9,
                array(8, 4, text("a") + text("") + text("c" * 300) + b"\2" + b"\0" * 7 + b"\xff\xfe"),
            ),
            key("numbers", 9, array(5, 3, struct.pack("<3i", -1, 2, 3))),
            key("flags", 9, array(7, 3, b"\0\1\2")),
            key("nested", 9, array(9, 2, array(0, 2, b"\1\2") + array(8, 1, text("z")))),
            key("empty", 9, array(8, 0, b"")),
        ]
    )


def value(file: GGUFFile, name: str) -> MetadataArray:
    found = file.metadata[name]
    assert isinstance(found, MetadataArray)
    return found


def test_elements(arrays: Path) -> None:
    with GGUFFile(arrays) as file:
        words = value(file, "words")
        assert words.tolist() == ["a", "", "c" * 300, "��"]
        assert [words[0], words[-1], words[-2]] == ["a", "��", "c" * 300]
        assert words[1:3] == ["", "c" * 300]
        assert list(words) == words.tolist()
        assert "a" in words
        assert repr(words) == "<MetadataArray of 4 string>"
        with pytest.raises(IndexError):
            words[4]
        numbers = value(file, "numbers")
        assert (numbers.tolist(), numbers[0], numbers[1:], len(numbers)) == ([-1, 2, 3], -1, [2, 3], 3)
        assert numbers.element_type is ValueType.INT32
        assert value(file, "flags").tolist() == [False, True, True]
        assert value(file, "flags")[2] is True
        nested = value(file, "nested")
        assert nested.tolist() == [[1, 2], ["z"]]
        assert [len(inner) for inner in nested] == [2, 1]
        assert nested[1].tolist() == ["z"]
        assert nested[:1][0].tolist() == [1, 2]
        assert value(file, "empty").tolist() == []
        assert list(value(file, "empty")) == []


def test_elements_as_they_stand_in_the_file(arrays: Path) -> None:
    with GGUFFile(arrays) as file:
        assert bytes(value(file, "numbers").raw()) == struct.pack("<3i", -1, 2, 3)
        assert bytes(value(file, "words").raw()) == packed([b"a", b"", b"c" * 300, b"\xff\xfe"])
        assert bytes(value(file, "empty").raw()) == b""
        assert bytes(value(file, "nested").raw()).endswith(packed([b"z"]))


def test_elements_need_the_file(arrays: Path) -> None:
    with GGUFFile(arrays) as file:
        words = value(file, "words")
    assert len(words) == 4
    with pytest.raises(HandleClosed):
        words.raw()
    with pytest.raises(HandleClosed):
        words.tolist()
    with pytest.raises(HandleClosed):
        words[0]


def test_file_changed_in_place(arrays: Path) -> None:
    with GGUFFile(arrays) as file:
        at = arrays.read_bytes().index(struct.pack("<Q", 300))
        with arrays.open("r+b") as changed:
            changed.seek(at)
            changed.write(struct.pack("<Q", 2**62))
        with pytest.raises(CorruptGGUF, match="changed in place"):
            value(file, "words").tolist()
