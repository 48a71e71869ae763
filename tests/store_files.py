"""Looks at the files of a store of packed weights, and changes them, behind its back.

``from store_files import DATA, names, used`` works in every test file.
"""

from __future__ import annotations

import os

from shardload.shards.entry import Entry
from shardload.shards.store import Store

DATA = memoryview(bytes(range(256)) * 40)


def used(entry: Entry, seconds: float) -> None:
    """Give an entry a time of last use."""
    os.utime(f"{entry.path}.json", (seconds, seconds))


def names(store: Store) -> list[str]:
    """The files of its entries."""
    return sorted(os.listdir(store.directory / "packed"))
