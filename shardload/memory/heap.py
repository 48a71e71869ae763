"""The C library's heap, which keeps what was freed in case it is wanted again."""

from __future__ import annotations

from shardload_native import libc


def trim_heap() -> bool:
    """Give pages that were freed back to the system; False where the C library cannot.

    Takes about a millisecond, on any thread. Without it, opening and closing models for a day leaves holes
    between what is still in use that nobody else can have.
    """
    try:
        libc.malloc_trim()
    except OSError:
        return False
    return True
