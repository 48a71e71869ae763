"""The slots through which a library calls others, pointed at functions of ours for a while."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from shardload_native import libc
from shardload_native.got import Region, SlotsNotFound, find_slots, read_regions

PROT_READ, PROT_WRITE = 1, 2

# Slots of several sets may share a page, which one would protect under the other's hands.
_writing = threading.Lock()


class Slots:
    """The slots of one library, by the function that is called through them.

    What points them elsewhere is one alone at a time: a second one would take the first one's functions for
    the original ones.
    """

    def __init__(self, addresses: Mapping[str, Sequence[int]], read_only: frozenset[int]) -> None:
        self.addresses, self._read_only = addresses, read_only

    @classmethod
    def find(cls, library: Path, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> Self:
        """Those of a loaded library, each of which holds a function and can be written.

        Raises SlotsNotFound, where one of those that are ``needed`` is not called as well.
        """
        addresses = find_slots(library, needed + others)
        if missing := [symbol for symbol in needed if not addresses[symbol]]:
            raise SlotsNotFound(f"{library.name} does not call {', '.join(missing)}")
        regions = read_regions()
        places = {slot: _region_of(regions, slot) for found in addresses.values() for slot in found}
        read_only = frozenset(slot for slot, region in places.items() if "w" not in region.permissions)
        slots = cls(addresses, read_only)
        for slot in places:
            if "x" not in _region_of(regions, slots.read(slot)).permissions:
                raise SlotsNotFound(f"slot {slot:#x} of {library.name} holds no function")
        try:
            for slot in places:
                slots.write(slot, slots.read(slot))
        except OSError as error:
            raise SlotsNotFound(f"the slots of {library.name} are locked: {error}") from error
        return slots

    @contextmanager
    def pointing(self, functions: Mapping[str, int]) -> Iterator[None]:
        """Have other functions called, by their addresses, until the end of the block."""
        wanted = {slot: address for name, address in functions.items() for slot in self.addresses[name]}
        saved = {slot: self.read(slot) for slot in wanted}
        try:
            for slot, address in wanted.items():
                self.write(slot, address)
            yield
        finally:
            for slot, address in saved.items():
                self.write(slot, address)

    def read(self, slot: int) -> int:
        """The address that a slot holds."""
        return ctypes.c_size_t.from_address(slot).value

    def write(self, slot: int, address: int) -> None:
        """Let a slot hold another address. Raises OSError where that cannot be."""
        if slot not in self._read_only:
            ctypes.c_size_t.from_address(slot).value = address
            return
        page = slot & ~(mmap.PAGESIZE - 1)
        with _writing:
            libc.mprotect(page, mmap.PAGESIZE, PROT_READ | PROT_WRITE)
            ctypes.c_size_t.from_address(slot).value = address
            libc.mprotect(page, mmap.PAGESIZE, PROT_READ)


def _region_of(regions: Sequence[Region], address: int) -> Region:
    for region in regions:
        if region.start <= address < region.end:
            return region
    raise SlotsNotFound(f"address {address:#x} is not mapped")
