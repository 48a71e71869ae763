"""Loads that touch no page: llama.cpp's own mmap without the flag that reads the whole file.

While a load runs on this thread, the slots through which libllama calls `mmap`, `munmap` and
`posix_madvise` point at functions of ours: MAP_POPULATE is dropped, advice is swallowed but for our own, and
each mapping of a file is noted. The slots are put back afterwards. Calls of other threads pass through
unchanged.
Where a slot is missing or holds something unexpected, and on platforms other than Linux, nothing is
touched and the load is llama.cpp's ordinary one.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shardload_native.got import Region, SlotsNotFound, find_slots, read_regions
from shardload_native.library import Llama, load, new_ffi

logger = logging.getLogger("shardload.llama")

# Two sets of hooks would each take the other's functions for the original ones.
_searching = threading.Lock()

SYMBOLS = ("mmap", "munmap", "posix_madvise")
MAP_ANONYMOUS, MAP_POPULATE = 0x20, 0x8000
# Weights are read through from end to end for each token: pages of 2 MiB spare a table walk every 4 KiB,
# which is a tenth of the time. File systems without large folios, and kernels set to never, ignore it.
MADV_HUGEPAGE = 14
PROT_READ, PROT_WRITE = 1, 2
CALLS = """
    void * mmap(void *, size_t, int, int, int, long);
    int munmap(void *, size_t);
    int posix_madvise(void *, size_t, int);
    int madvise(void *, size_t, int);
    int mprotect(void *, size_t, int);
"""
SIGNATURES = {
    "mmap": "void *(void *, size_t, int, int, int, long)",
    "munmap": "int(void *, size_t)",
    "posix_madvise": "int(void *, size_t, int)",
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of this process's memory that shows a part of a file, from ``offset`` in the file."""

    address: int
    length: int
    path: str
    offset: int = 0


@dataclass(slots=True)
class Recording:
    """What one hooked load mapped."""

    usable: bool
    mappings: list[Mapping] = field(default_factory=list)

    def forget(self, address: int, length: int) -> None:
        """Take an unmapped range out of the mappings."""
        self.mappings = [piece for mapping in self.mappings for piece in subtract(mapping, address, length)]


def subtract(mapping: Mapping, address: int, length: int) -> list[Mapping]:
    """What is left of a mapping without a range: zero, one or two pieces."""
    end = mapping.address + mapping.length
    before = min(max(address - mapping.address, 0), mapping.length)
    after = min(max(end - (address + length), 0), mapping.length)
    if before + after >= mapping.length:
        return [mapping]
    pieces = []
    if before:
        pieces.append(Mapping(mapping.address, before, mapping.path, mapping.offset))
    if after:
        skipped = mapping.length - after
        pieces.append(Mapping(mapping.address + skipped, after, mapping.path, mapping.offset + skipped))
    return pieces


class LoadHooks:
    """The slots of one libllama and the functions that stand in for them; one per process."""

    def __init__(self, slots: dict[str, list[int]], read_only: set[int]) -> None:
        self._ffi = new_ffi(CALLS)
        self._libc = self._ffi.dlopen(None)
        self._slots, self._read_only = slots, read_only
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._recording: Recording | None = None
        failed = {"mmap": self._ffi.cast("void *", -1)}
        self._replacements = {
            name: self._ffi.callback(signature, getattr(self, f"_{name}"), error=failed.get(name, -1))
            for name, signature in SIGNATURES.items()
        }

    @contextmanager
    def hooked(self) -> Iterator[Recording]:
        """Point the slots at our functions; one load at a time."""
        with self._lock:
            recording = Recording(usable=True)
            self._recording, self._thread = recording, threading.get_ident()
            saved = {slot: self._read(slot) for slots in self._slots.values() for slot in slots}
            try:
                for name, slots in self._slots.items():
                    address = int(self._ffi.cast("uintptr_t", self._replacements[name]))
                    for slot in slots:
                        self._write(slot, address)
                yield recording
            finally:
                for slot, address in saved.items():
                    self._write(slot, address)
                self._recording = self._thread = None

    def _read(self, slot: int) -> int:
        return int(self._ffi.cast("uintptr_t *", slot)[0])

    def _write(self, slot: int, address: int) -> None:
        if slot in self._read_only:
            self._protect(slot, PROT_READ | PROT_WRITE)
        self._ffi.cast("uintptr_t *", slot)[0] = address
        if slot in self._read_only:
            self._protect(slot, PROT_READ)

    def _protect(self, slot: int, protection: int) -> None:
        page = self._ffi.cast("void *", slot & ~(mmap.PAGESIZE - 1))
        if self._libc.mprotect(page, mmap.PAGESIZE, protection) != 0:
            code = self._ffi.errno
            raise OSError(code, f"mprotect: {os.strerror(code)}")

    def _recording_of_this_thread(self) -> Recording | None:
        return self._recording if self._thread == threading.get_ident() else None

    def _mmap(self, address: Any, length: int, protection: int, flags: int, file: int, offset: int) -> Any:
        recording = self._recording_of_this_thread()
        if recording is None or flags & MAP_ANONYMOUS or file < 0:
            return self._libc.mmap(address, length, protection, flags, file, offset)
        result = self._libc.mmap(address, length, protection, flags & ~MAP_POPULATE, file, offset)
        if result != self._ffi.cast("void *", -1):
            self._libc.madvise(result, length, MADV_HUGEPAGE)
            path = os.readlink(f"/proc/self/fd/{file}")
            start = int(self._ffi.cast("uintptr_t", result))
            recording.mappings.append(Mapping(start, length, path, offset))
        return result

    def _munmap(self, address: Any, length: int) -> int:
        result = int(self._libc.munmap(address, length))
        recording = self._recording_of_this_thread()
        if recording is not None and result == 0:
            recording.forget(int(self._ffi.cast("uintptr_t", address)), length)
        return result

    def _posix_madvise(self, address: Any, length: int, advice: int) -> int:
        if self._recording_of_this_thread() is not None:
            return 0
        return int(self._libc.posix_madvise(address, length, advice))


def find_hooks(llama: Llama) -> LoadHooks:
    """The hooks of a loaded libllama. Raises SlotsNotFound where they cannot be used."""
    if not sys.platform.startswith("linux"):
        raise SlotsNotFound("only Linux needs them")
    slots = find_slots(llama.library_path, SYMBOLS)
    if missing := [symbol for symbol, found in slots.items() if not found]:
        raise SlotsNotFound(f"{llama.library_path.name} does not call {', '.join(missing)}")
    regions = read_regions()
    places = {slot: _region_of(regions, slot) for found in slots.values() for slot in found}
    hooks = LoadHooks(slots, {slot for slot, region in places.items() if "w" not in region.permissions})
    for slot in places:
        if "x" not in _region_of(regions, hooks._read(slot)).permissions:
            raise SlotsNotFound(f"slot {slot:#x} of {llama.library_path.name} holds no function")
    try:
        for slot in places:
            hooks._write(slot, hooks._read(slot))
    except OSError as error:
        raise SlotsNotFound(f"the slots of {llama.library_path.name} are locked: {error}") from error
    return hooks


def _region_of(regions: list[Region], address: int) -> Region:
    for region in regions:
        if region.start <= address < region.end:
            return region
    raise SlotsNotFound(f"address {address:#x} is not mapped")


@dataclass(frozen=True, slots=True)
class HookVerdict:
    """Whether loads of this process are lazy, and if not, why."""

    usable: bool
    reason: str
    hooks: LoadHooks | None


def hook_verdict() -> HookVerdict:
    """Look for the slots, once per process; one line in the log where loads will not be lazy."""
    with _searching:
        return _search_once()


@functools.cache
def _search_once() -> HookVerdict:
    try:
        return HookVerdict(True, "usable", find_hooks(load()))
    except SlotsNotFound as error:
        if sys.platform.startswith("linux"):
            logger.warning("lazy mapping is not available, models are read whole when opened: %s", error)
        return HookVerdict(False, str(error), None)


@contextmanager
def lazy_mapping() -> Iterator[Recording]:
    """Make the loads of this thread inside the block lazy, where that is possible."""
    verdict = hook_verdict()
    if verdict.hooks is None:
        yield Recording(usable=False)
        return
    with verdict.hooks.hooked() as recording:
        yield recording
