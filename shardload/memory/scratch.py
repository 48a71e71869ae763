"""Private memory for large things that come and go, apart from the heap."""

from __future__ import annotations

import mmap
import sys


def scratch(nbytes: int) -> memoryview:
    """Zeroed memory of its own; the system has it back as soon as nobody refers to it.

    On the heap, a gap would stay where it was.
    """
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]
    region = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(region)[:nbytes]
