"""What ``shardload doctor`` says of the packed store."""

from __future__ import annotations

import os
import shutil

from shardload.assembly import store_of
from shardload.config import StoreConfig
from shardload.errors import format_bytes
from shardload.shards.store import Store
from shardload_server.cli import console
from shardload_server.cli.checks import Check

WITHOUT = "each process packs weights into memory of its own"


def store_check(settings: StoreConfig) -> Check:
    """Where the packed store is, how full, and whether anything can be added to it."""
    store = store_of(settings)
    if store is None:
        return Check("store", "note", f"off: {WITHOUT}")
    directory = store.directory
    place = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("store", "note", f"{directory} cannot be written: {WITHOUT}")
    free_bytes = shutil.disk_usage(place).free
    found = f"{directory}: {_contents(store, settings.limit)}; {format_bytes(free_bytes)} free on the disk"
    if free_bytes < store.reserve_bytes:
        return Check("store", "note", f"{found}: nothing is added below {format_bytes(store.reserve_bytes)}")
    return Check("store", "ok", found)


def _contents(store: Store, limit_bytes: int) -> str:
    if not store.directory.exists():
        return f"empty, at most {format_bytes(limit_bytes)}"
    entries = store.entries()
    used = format_bytes(sum(entry.nbytes for entry in entries))
    return f"{used} of {format_bytes(limit_bytes)} in {console.count(len(entries), 'tensor')}"
