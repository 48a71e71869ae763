"""Arithmetic on pages, and the slow way to touch them that works everywhere."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

PAGE_BYTES = mmap.PAGESIZE
# The kernel keeps files in pieces of up to this size, and gives away whole ones gladly.
PIECE_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Range:
    """Some bytes of this process's memory."""

    address: int
    length: int

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.length


@dataclass(frozen=True, slots=True)
class PageSpan:
    """The whole pages that a range of addresses touches."""

    address: int
    count: int

    @property
    def length(self) -> int:
        """Bytes in those pages."""
        return self.count * PAGE_BYTES


def page_span(address: int, length: int) -> PageSpan:
    """The pages of ``length`` bytes at ``address``, rounded outwards."""
    start = address // PAGE_BYTES * PAGE_BYTES
    return PageSpan(start, -(-(address + length - start) // PAGE_BYTES) if length > 0 else 0)


def cut(place: Range, length: int) -> Iterator[Range]:
    """A range in pieces that end where ``length`` divides the address."""
    at = place.address
    while at < place.end:
        end = min(place.end, (at // length + 1) * length)
        yield Range(at, end - at)
        at = end


def touch(address: int, length: int) -> None:
    """Read a byte of every page, so that each is in memory; the range must be mapped and readable."""
    if length > 0:
        memory = (ctypes.c_ubyte * length).from_address(address)
        np.ctypeslib.as_array(memory)[::PAGE_BYTES].max()


@contextmanager
def mapped(descriptor: int, offset: int, length: int) -> Iterator[int]:
    """Map a range of a file for a moment and yield the address of its first byte; no page is read."""
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(descriptor, offset + length - start, access=mmap.ACCESS_READ, offset=start) as mapping:
        view = np.frombuffer(mapping, np.uint8)
        address = int(view.ctypes.data)
        del view  # the mapping cannot be closed under it
        yield address + offset - start


def clipped_length(descriptor: int, offset: int, length: int | None) -> int:
    """Bytes of the file from ``offset`` on, at most ``length``."""
    left = max(0, os.fstat(descriptor).st_size - offset)
    return left if length is None else min(length, left)
