from __future__ import annotations

import ctypes
import mmap
import sys

import pytest

from shardload_native import slots
from shardload_native.got import SlotsNotFound, find_slots
from shardload_native.library import load
from shardload_native.slots import PROT_READ, Slots

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has these slots")

SYMBOLS = ("mmap", "munmap")


def find() -> Slots:
    return Slots.find(load().library_path, SYMBOLS, ("no_such_function",))


def test_slots_point_elsewhere_for_a_while() -> None:
    found = find()
    assert found.addresses["no_such_function"] == []
    (slot,), other = found.addresses["munmap"], found.read(found.addresses["mmap"][0])
    before = found.read(slot)
    with found.pointing({"munmap": other, "no_such_function": other}):
        assert found.read(slot) == other
    assert found.read(slot) == before
    with pytest.raises(KeyError), found.pointing({"munmap": other}):
        raise KeyError
    assert found.read(slot) == before


@pytest.mark.parametrize("change", ["missing", "unmapped", "no function"])
def test_slots_are_looked_at_before_use(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_slots(load().library_path, SYMBOLS)
    number = ctypes.c_size_t(0)
    data = ctypes.c_size_t(ctypes.addressof(number))
    wrong = {
        "missing": {**found, "munmap": []},
        "unmapped": {**found, "munmap": [64]},
        "no function": {**found, "munmap": [ctypes.addressof(data)]},
    }
    monkeypatch.setattr(slots, "find_slots", lambda *_: wrong[change])
    with pytest.raises(SlotsNotFound):
        Slots.find(load().library_path, SYMBOLS)


def test_slots_that_cannot_be_written_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("mprotect: Permission denied")

    monkeypatch.setattr(Slots, "write", refuse)
    with pytest.raises(SlotsNotFound, match="locked: mprotect"):
        find()


def test_read_only_slots_are_writable_for_a_moment() -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    slot = ctypes.addressof(ctypes.c_size_t.from_buffer(page))
    protected = Slots({"f": [slot]}, frozenset({slot}))
    protected.write(slot, 1)
    with protected.pointing({"f": 2}):
        assert protected.read(slot) == 2
    assert protected.read(slot) == 1


def test_protection_that_fails_is_no_crash() -> None:
    with pytest.raises(OSError, match="mprotect"):
        Slots({}, frozenset({mmap.PAGESIZE})).write(mmap.PAGESIZE, PROT_READ)  # nothing is mapped there
