"""The one place that knows which operating system this is."""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.memory import darwin, linux, other
from shardload.memory.process import ProcessMemory


class Platform(Protocol):
    """What a system can do with pages; addresses begin pages and lengths are whole pages."""

    def residency(self, address: int, pages: int) -> NDArray[np.bool_] | None:
        """Which pages are in memory; None where the system does not tell."""

    def cached_bytes(self, descriptor: int, offset: int, length: int) -> int | None:
        """Bytes of a range of a file that are in memory; None where the system does not tell."""

    def may_send_away(self, descriptor: int) -> bool:
        """Whether this user is told which pages of a file are in memory, and may ask for them to leave."""

    def page_out(self, address: int, length: int) -> bool:
        """Ask for pages to leave memory; False where that cannot be asked for."""

    def populate_read(self, address: int, length: int) -> None:
        """Bring pages into memory and wait for them."""

    def read_ahead(self, address: int, length: int, wanted: bool) -> None:
        """Whether touching a page of a file may read those after it; only advice."""

    def discard(self, address: int, length: int) -> None:
        """Give whole pages of anonymous memory back, or do nothing."""

    def expect_lookups(self, address: int, length: int) -> None:
        """Read single pages of a range as they are touched, and none beside them."""

    def prefer_large_pages(self, address: int, length: int) -> None:
        """Ask for large pages of a mapped file where they are of use; only advice. Raises OSError."""

    def yield_to_others(self) -> None:
        """Let threads of normal priority go before the calling one, where threads have priorities."""

    def drop_cache(self, descriptor: int, offset: int, length: int) -> bool:
        """Ask for unmapped pages of a file to leave memory; False where that cannot be asked for."""

    def process_memory(self) -> ProcessMemory:
        """What this process has in memory."""


def current() -> Platform:
    """The platform we run on."""
    name = sys.platform  # through a variable: mypy would take the other branches for dead
    if name == "linux":
        return linux
    if name == "darwin":
        return darwin
    return other
