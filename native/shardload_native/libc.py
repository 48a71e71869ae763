"""The C library's calls that Python has no words for, most on memory. Nothing is loaded before the first."""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

import cffi

DECLARATIONS = """
    struct cachestat_range { uint64_t off; uint64_t len; };
    struct cachestat {
        uint64_t nr_cache; uint64_t nr_dirty; uint64_t nr_writeback;
        uint64_t nr_evicted; uint64_t nr_recently_evicted;
    };
    int mincore(uintptr_t address, size_t length, unsigned char *vector);
    int madvise(uintptr_t address, size_t length, int advice);
    int msync(uintptr_t address, size_t length, int flags);
    int mprotect(uintptr_t address, size_t length, int protection);
    intptr_t mmap(uintptr_t address, size_t length, int protection, int flags, int descriptor, long offset);
    int munmap(uintptr_t address, size_t length);
    int posix_madvise(uintptr_t address, size_t length, int advice);
    long syscall(long number, ...);
    int malloc_trim(size_t pad);
    int sem_init(void *semaphore, int shared, unsigned int value);
    int sem_destroy(void *semaphore);
    int sem_post(void *semaphore);
    int sem_getvalue(void *semaphore, int *value);
"""
PROT_READ, MAP_SHARED, MAP_FAILED = 1, 1, -1
CACHESTAT = 451  # one number for every architecture that Linux still adds system calls to


def map_shared(descriptor: int, length: int) -> int:
    """Map a file from its beginning, to be read only, sharing its pages. Raises OSError."""
    _, library = calls()
    address: int = library.mmap(0, length, PROT_READ, MAP_SHARED, descriptor, 0)
    if address == MAP_FAILED:
        check(-1, "mmap")
    return address


def unmap(address: int, length: int) -> None:
    """Take a mapping away; nobody may look at it any more. Raises OSError."""
    _, library = calls()
    check(library.munmap(address, length), "munmap")


def mincore(address: int, length: int, vector: bytearray) -> None:
    """Fill one byte per page, whose lowest bit says that the page is in memory; ``address`` begins a page.

    Raises OSError; ENOMEM where a page of the range is not mapped.
    """
    ffi, library = calls()
    check(library.mincore(address, length, ffi.from_buffer(vector)), "mincore")


def madvise(address: int, length: int, advice: int) -> None:
    """Tell the system how a range will be used; ``address`` begins a page. Raises OSError."""
    _, library = calls()
    check(library.madvise(address, length, advice), "madvise")


def msync(address: int, length: int, flags: int) -> None:
    """Bring a mapped range and its file together; ``address`` begins a page. Raises OSError."""
    _, library = calls()
    check(library.msync(address, length, flags), "msync")


def mprotect(address: int, length: int, protection: int) -> None:
    """Say what a mapped range may be used for; ``address`` begins a page. Raises OSError."""
    _, library = calls()
    check(library.mprotect(address, length, protection), "mprotect")


def cached_pages(descriptor: int, offset: int, length: int) -> int:
    """How many pages of a range of a file are in memory. Raises OSError; ENOSYS before Linux 6.5."""
    ffi, library = calls()
    asked = ffi.new("struct cachestat_range *", {"off": offset, "len": length})
    answer = ffi.new("struct cachestat *")
    number, handle, flags = ffi.cast("long", CACHESTAT), ffi.cast("int", descriptor), ffi.cast("int", 0)
    check(library.syscall(number, handle, asked, answer, flags), "cachestat")
    return int(answer.nr_cache)


def malloc_trim() -> None:
    """Give the heap's free pages back to the system. Raises OSError, ENOSYS, where only glibc can do it."""
    _, library = calls()
    try:
        trim = library.malloc_trim
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "this C library cannot trim its heap") from error
    trim(0)


@functools.cache
def calls() -> tuple[Any, Any]:
    """cffi and the functions as they are declared. Raises OSError, ENOSYS, where there are none."""
    untyped: Any = cffi
    ffi = untyped.FFI()
    ffi.cdef(DECLARATIONS)
    try:
        return ffi, ffi.dlopen(None)
    except OSError as error:
        raise OSError(errno.ENOSYS, "this system has no C library of the POSIX kind") from error


def check(status: int, call: str) -> None:
    """Raise OSError for a call that did not return 0."""
    if status != 0:
        code = calls()[0].errno
        raise OSError(code, f"{call}: {os.strerror(code)}")
