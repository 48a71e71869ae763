"""Bringing pages into memory, and sending them away."""

from __future__ import annotations

import ctypes
import os
from os import PathLike

import numpy as np

from shardload.memory.mapped import mapped_files
from shardload.memory.pages import PAGE_BYTES, Range, clipped_length, page_span
from shardload.memory.platform import current

POPULATE_CHUNK_BYTES = 8 * 2**20


def page_out(address: int, length: int) -> bool:
    """Ask for every page that a mapped range touches to leave memory now; False where that is impossible.

    Takes clean pages of files that this user owns or may write. Others stay without a word, and so do pages
    that the kernel keeps as one with pages outside of the range (a file just written, in large folios): so
    measure afterwards. The mapping stays valid. Raises OSError where the range is not mapped.
    """
    span = page_span(address, length)
    return current().page_out(span.address, span.length) if span.count else True


def discard(private: Range) -> None:
    """Give anonymous memory back; it reads as zeros afterwards. Pages that the range only touches stay.

    Nobody may use the range any more. Does nothing where the system cannot, or where pages are locked in
    memory. Raises OSError where the range is not mapped.
    """
    start = -(-private.address // PAGE_BYTES) * PAGE_BYTES
    length = private.end // PAGE_BYTES * PAGE_BYTES - start
    if length > 0:
        current().discard(start, length)


def view(place: Range) -> memoryview:
    """Some bytes of this process to read, for as long as they are mapped."""
    return memoryview((ctypes.c_ubyte * place.length).from_address(place.address)).cast("B").toreadonly()


def same_bytes(one: Range, other: Range) -> bool:
    """Whether two ranges say the same; reads both, and lets other threads go on meanwhile."""
    if one.length != other.length:
        return False
    left, right = (np.frombuffer(view(place), np.uint8) for place in (one, other))
    chunks = range(0, one.length, POPULATE_CHUNK_BYTES)
    return all(
        np.array_equal(left[at : at + POPULATE_CHUNK_BYTES], right[at : at + POPULATE_CHUNK_BYTES])
        for at in chunks
    )


def expect_lookups(place: Range) -> None:
    """Have the pages that a mapped range touches read one by one as they are used, without neighbours.

    For what is looked up here and there, or small among what is not read. Raises OSError where the range is
    not mapped.
    """
    span = page_span(place.address, place.length)
    if span.count:
        current().expect_lookups(span.address, span.length)
        if (file := mapped_files().at(span.address)) is not None:
            file.note_lookups(Range(span.address, span.length))


def drop_file_cache(path: str | PathLike[str], offset: int = 0, length: int | None = None) -> bool:
    """Ask for the pages of a file, or of a range of it, to leave memory; False where that is impossible.

    Pages that are dirty, or mapped by anybody, stay. Raises OSError for a file that cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        wanted = clipped_length(descriptor, offset, length)
        return current().drop_cache(descriptor, offset, wanted) if wanted else True
    finally:
        os.close(descriptor)


def populate_read(address: int, length: int, chunk_bytes: int = POPULATE_CHUNK_BYTES) -> None:
    """Bring every page that a mapped range touches into memory, in order, and wait for it.

    Works in chunks, so that other threads of the process get to map and unmap in between. Raises OSError
    where the range is not mapped or its file cannot be read.
    """
    span = page_span(address, length)
    chunk = page_span(0, max(1, chunk_bytes)).length
    populate = current().populate_read
    for start in range(0, span.length, chunk):
        populate(span.address + start, min(chunk, span.length - start))
