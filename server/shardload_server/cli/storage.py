"""What ``shardload doctor`` says of the packed store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shardload.config import StoreConfig
from shardload.errors import format_bytes
from shardload.shards.store import Store
from shardload_server.cli import console
from shardload_server.cli.checks import Check
from shardload_server.cli.location import store_directory

WITHOUT = "each process packs weights into memory of its own"


def store_check(option: str | None) -> Check:
    """Where the packed store is, how full, and whether anything can be added to it."""
    directory = store_directory(option)
    if directory is None:
        return Check("store", "note", f"off: {WITHOUT}")
    place = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("store", "note", f"{directory} cannot be written: {WITHOUT}")
    return Check("store", "ok", f"{directory}: {_contents(directory)}; {_free(place)} free on the disk")


def _contents(directory: Path) -> str:
    limit_bytes = StoreConfig().limit
    if not directory.exists():
        return f"empty, at most {format_bytes(limit_bytes)}"
    entries = Store(directory).entries()
    used = format_bytes(sum(entry.nbytes for entry in entries))
    return f"{used} of {format_bytes(limit_bytes)} in {console.count(len(entries), 'tensor')}"


def _free(place: Path) -> str:
    return format_bytes(shutil.disk_usage(place).free)
