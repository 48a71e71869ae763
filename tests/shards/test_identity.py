from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.shards.identity import TICK_SECONDS, FileIdentity

NUMBERS = st.integers(-(2**63), 2**63)


def test_a_path_a_descriptor_and_a_status_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with path.open("rb") as file:
        assert FileIdentity.of(path) == FileIdentity.of(file.fileno()) == FileIdentity.of(os.stat(path))
    assert FileIdentity.of(path).size == 3


def test_an_edit_shows_although_size_and_time_are_restored(
    tmp_path: Path, change: Callable[..., None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    before = FileIdentity.of(path)
    change(path, 1)
    after = FileIdentity.of(path)
    assert (after.size, after.mtime_ns, after.inode) == (before.size, before.mtime_ns, before.inode)
    assert not after.same(before)


def test_another_file_of_the_same_size_and_time_shows(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"abc")
    before = FileIdentity.of(path)
    other.write_bytes(b"xyz")
    os.utime(other, ns=(before.mtime_ns, before.mtime_ns))
    os.replace(other, path)
    assert not FileIdentity.of(path).same(before)


def test_a_device_with_another_number_does_not_count() -> None:
    identity = FileIdentity(1, 2, 3, 4, 5)
    assert identity.same(replace(identity, device=9))
    for name in ("inode", "size", "mtime_ns", "ctime_ns"):
        assert not identity.same(replace(identity, **{name: 99}))


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_is_read_as_it_was_written(device: int, inode: int, size: int, mtime: int, ctime: int) -> None:
    identity = FileIdentity(device, inode, size, mtime, ctime)
    assert FileIdentity.parse(str(identity)) == identity


@given(st.text())
def test_other_text_is_refused(text: str) -> None:
    try:
        FileIdentity.parse(text)
    except ValueError:
        return
    assert text.count(":") == 4


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileIdentity.of(tmp_path / "nothing")


def test_a_file_is_settled_when_its_next_change_must_show() -> None:
    identity = FileIdentity(1, 2, 3, 4, ctime_ns=time.time_ns())
    assert 0 < identity.unsettled_seconds <= TICK_SECONDS
    second = 10**9
    for ctime_ns in (identity.ctime_ns - second, identity.ctime_ns + second):  # of a clock that was set
        assert replace(identity, ctime_ns=ctime_ns).unsettled_seconds == 0
