from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shardload.memory import PAGE_BYTES


@dataclass(frozen=True)
class MappedFile:
    """A file of 64 pages that is mapped, on disk and clean."""

    path: Path
    address: int
    length: int


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Keeps the test on one CPU: on Linux no page leaves that another has read a moment ago."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def mapped_file(disk_path: Path, one_cpu: None) -> Iterator[MappedFile]:
    path = disk_path / "pages"
    length = 64 * PAGE_BYTES
    with path.open("wb") as file:
        file.write(os.urandom(length))
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        view = np.frombuffer(mapping, np.uint8)
        address = int(view.ctypes.data)
        del view
        yield MappedFile(path, address, length)
