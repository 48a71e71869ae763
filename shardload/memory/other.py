"""Pages on Windows and elsewhere: residency is unknown, and nothing can be evicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardload.memory.pages import touch
from shardload.memory.process import ProcessMemory, portable_process_memory


def residency(address: int, pages: int) -> NDArray[np.bool_] | None:
    """Unknown here."""
    return None


def cached_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """Unknown here."""
    return None


def may_send_away(descriptor: int) -> bool:
    """Nothing can be evicted here."""
    return False


def page_out(address: int, length: int) -> bool:
    """Cannot be asked for here."""
    return False


def populate_read(address: int, length: int) -> None:
    """Bring whole pages into memory by reading a byte of each."""
    touch(address, length)


def read_ahead(address: int, length: int, wanted: bool) -> None:
    """Nothing is known to be gained here."""


def discard(address: int, length: int) -> None:
    """Give whole pages of anonymous memory back; not done here."""


def expect_lookups(address: int, length: int) -> None:
    """The system decides by itself."""


def prefer_large_pages(address: int, length: int) -> None:
    """Ask for pages as large as there are."""


def yield_to_others() -> None:
    """Not done here: priorities are those of whole processes."""


def drop_cache(descriptor: int, offset: int, length: int) -> bool:
    """Cannot be asked for here."""
    return False


def process_memory() -> ProcessMemory:
    """What this process has in memory."""
    return portable_process_memory()
