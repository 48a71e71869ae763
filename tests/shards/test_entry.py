from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.shards.entry import Entry, PackedKey, Record, decode_record, encode_record, victims
from shardload.shards.identity import FileIdentity

KEY = PackedKey("d", "Q4_K", (256, 4), "CPU_REPACK", "build")
IDENTITY = FileIdentity(1, 2, 30, 4, 5)
RECORD = Record(1, KEY, 30, "sum", IDENTITY.lasting, 6.5)


def entry(name: str, nbytes: int = 10, last_used: float = 0.0, build: str = "build") -> Entry:
    return Entry(name, Path(name), nbytes, last_used, 0.0, replace(KEY, digest=name, build=build))


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, digest="e"),
        replace(KEY, type_name="Q4_0"),
        replace(KEY, ne=(4, 256)),
        replace(KEY, buffer_type="AMX"),
        replace(KEY, build="other"),
    ],
)
def test_whatever_decides_the_bytes_decides_the_id(other: PackedKey) -> None:
    assert other.id != KEY.id
    assert len(other.id) == 64


def test_a_record_is_read_as_it_was_written() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


@pytest.mark.parametrize("version", [0, 2])
def test_records_of_other_versions_are_not_read(version: int) -> None:
    data = encode_record(RECORD).replace(b'"version":1', b'"version":%d' % version)
    assert decode_record(data) is None


@given(st.binary(max_size=100))
def test_damaged_records_are_not_read(data: bytes) -> None:
    assert decode_record(data) is None


@given(st.integers(0, len(encode_record(RECORD)) - 1))
def test_records_that_end_early_are_not_read(length: int) -> None:
    assert decode_record(encode_record(RECORD)[:length]) is None


def test_a_record_fits_the_file_that_was_written() -> None:
    assert RECORD.fits(IDENTITY)
    assert RECORD.fits(replace(IDENTITY, device=7))
    assert not RECORD.fits(replace(IDENTITY, ctime_ns=7))
    assert not RECORD.fits(replace(IDENTITY, size=29))


def test_the_longest_unused_go_first() -> None:
    entries = [entry("new", last_used=3), entry("old", last_used=1), entry("middle", last_used=2)]
    found = victims(entries, frozenset(), 11, "build")
    assert found is not None
    assert [one.id for one in found] == ["old", "middle"]


def test_other_builds_go_before_all() -> None:
    entries = [entry("ours", last_used=1), entry("theirs", last_used=9, build="old build")]
    found = victims(entries, frozenset(), 1, "build")
    assert found is not None
    assert [one.id for one in found] == ["theirs"]


def test_what_is_held_stays() -> None:
    entries = [entry("held", last_used=1), entry("free", last_used=2)]
    assert victims(entries, frozenset({"held"}), 10, "build") == [entries[1]]
    assert victims(entries, frozenset({"held"}), 11, "build") is None


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 10), st.booleans(), st.booleans()), max_size=12),
    st.integers(-10, 600),
)
def test_takes_enough_and_not_one_more(facts: list[tuple[int, float, bool, bool]], wanted: int) -> None:
    entries = [
        entry(str(at), nbytes, used, "build" if ours else "other")
        for at, (nbytes, used, ours, _) in enumerate(facts)
    ]
    held = frozenset(str(at) for at, fact in enumerate(facts) if fact[3])
    found = victims(entries, held, wanted, "build")
    free = sum(one.nbytes for one in entries if one.id not in held)
    if found is None:
        assert free < wanted
        return
    assert not held & {one.id for one in found}
    assert sum(one.nbytes for one in found) >= wanted
    assert not found or sum(one.nbytes for one in found[:-1]) < wanted
