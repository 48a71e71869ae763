from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import pytest

from shardload_native import libc, slots
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


def test_slots_of_one_page_are_written_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    first = ctypes.addressof(ctypes.c_size_t.from_buffer(page))
    second = first + ctypes.sizeof(ctypes.c_size_t)
    one, two = (Slots({"f": [slot]}, frozenset({slot})) for slot in (first, second))
    others: list[threading.Thread] = []
    changes: list[tuple[int, int]] = []
    waits = threading.Event()

    class Lock:
        """Tells that somebody waits for it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if not self._lock.acquire(blocking=False):
                waits.set()
                self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    def protect(address: int, length: int, protection: int) -> None:
        changes.append((threading.get_ident(), protection))
        if not others:
            others.append(threading.Thread(target=two.write, args=(second, 2)))
            others[0].start()
            assert waits.wait(30)

    monkeypatch.setattr(slots, "_writing", Lock())
    monkeypatch.setattr(libc, "mprotect", protect)
    one.write(first, 1)
    others[0].join(30)
    assert (one.read(first), two.read(second)) == (1, 2)
    mine, other = threading.get_ident(), others[0].ident
    assert [thread for thread, _ in changes] == [mine, mine, other, other]


def test_protection_that_fails_is_no_crash() -> None:
    with pytest.raises(OSError, match="mprotect"):
        Slots({}, frozenset({mmap.PAGESIZE})).write(mmap.PAGESIZE, PROT_READ)  # nothing is mapped there
