"""Pages of files: what is in memory, out with it, in with it, and how fast the disk could bring it."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

from shardload.memory import file_resident_bytes
from tools.bench.processes import NotMeasurable

CHUNK_BYTES = 8 * 2**20
REMAINING_SHARE = 0.01
DROP_ALL = Path("/proc/sys/vm/drop_caches")


def resident(paths: Iterable[Path]) -> int:
    """Bytes of files that are in memory, whoever brought them."""
    counts = [file_resident_bytes(path) for path in paths]
    if None in counts:
        raise NotMeasurable("this system does not tell which pages of a file are in memory")
    return sum(count or 0 for count in counts)


def drop(paths: Iterable[Path]) -> None:
    """Send files out of memory; raises NotMeasurable if they stay, as what is mapped does."""
    files = list(paths)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _remains(files) and os.access(DROP_ALL, os.W_OK):
        DROP_ALL.write_text("1\n")
    if _remains(files):
        raise NotMeasurable(
            "pages stay in memory: something maps these files, or this user may not drop them"
        )


def _remains(files: list[Path]) -> bool:
    total_bytes = sum(path.stat().st_size for path in files)
    return resident(files) > REMAINING_SHARE * total_bytes


def bring(paths: Iterable[Path]) -> None:
    """Read files, so that their pages are warm."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(CHUNK_BYTES):
                pass


def direct_seconds(path: Path) -> float:
    """Seconds in which the disk gives a file from start to end, past the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError) as error:
        raise NotMeasurable(f"no direct reads here: {error}") from error
    with mmap.mmap(-1, CHUNK_BYTES) as buffer:
        try:
            started, offset = time.perf_counter(), 0
            while count := os.preadv(descriptor, [buffer], offset):
                offset += count
                if count % mmap.PAGESIZE:
                    break
            return time.perf_counter() - started
        finally:
            os.close(descriptor)
