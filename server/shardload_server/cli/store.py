"""``shardload store``: what is in the packed store, and what is to leave it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import typer

from shardload.errors import NativeError, format_bytes
from shardload.shards.store import PruneReport, Store
from shardload_server.cli import console
from shardload_server.cli.progress import byte_bar
from shardload_server.cli.settings import open_store, size_of
from shardload_server.cli.stored import Stored, StoredModel, ago, summarise

if TYPE_CHECKING:
    from rich.table import Table

    from shardload.config import StoreConfig

ID_LETTERS = 12


class Verified(msgspec.Struct, frozen=True):
    """What ``shardload store verify`` found."""

    directory: str
    whole: int
    damaged: tuple[str, ...]
    unreadable: int


class Removed(msgspec.Struct, frozen=True):
    """What left the store, what stays because running processes use it, and what could not be removed."""

    directory: str
    entries: int
    bytes: int
    held_entries: int
    held_bytes: int
    refused_entries: int
    refused_bytes: int


def list_store(settings: StoreConfig, *, every_entry: bool, as_json: bool) -> None:
    """Print which models have what in the store."""
    store = _opened(settings)
    users = {entry: [str(path) for path in paths] for entry, paths in store.users().items()}
    found = summarise(
        store.directory, store.limit_bytes, store.entries(), users, _build(), every_entry=every_entry
    )
    if as_json:
        console.print_json(found)
        return
    out = console.stdout()
    out.print(headline(found), soft_wrap=not out.is_terminal)
    if found.models:
        out.print()
        out.print(_model_table(found.models))
    if found.entries:
        out.print()
        out.print(_entry_table(found))
    for line in remarks(found):
        out.print(line, style="yellow")


def headline(found: Stored) -> str:
    """Where the store is, and how full."""
    limit = f" of {format_bytes(found.limit_bytes)}" if found.limit_bytes else ""
    return f"{found.directory}: {format_bytes(found.bytes)}{limit} in {console.count(found.count, 'tensor')}"


def remarks(found: Stored) -> list[str]:
    """What could be removed, and how."""
    lines = []
    if found.other_builds_bytes:
        size = format_bytes(found.other_builds_bytes)
        lines.append(f"{size} are of another llama.cpp or processor: `shardload store prune` removes them")
    if found.unused_bytes:
        size = format_bytes(found.unused_bytes)
        gone = "of model files that are gone or were replaced"
        lines.append(f"{size} are {gone}: `shardload store prune` removes them")
    return lines


def _model_table(models: tuple[StoredModel, ...]) -> Table:
    made = console.table("model", "packed", "shared", "shared with", "last use", numbers=("packed", "shared"))
    now = time.time()
    for model in models:
        made.add_row(
            model.name,
            format_bytes(model.bytes),
            format_bytes(model.shared_bytes),
            console.few(model.shared_with, 1),
            ago(now - model.last_used),
        )
    return made


def _entry_table(found: Stored) -> Table:
    made = console.table("entry", "type", "shape", "bytes", "last use", "models", numbers=("bytes",))
    now = time.time()
    for entry in found.entries or ():
        made.add_row(
            entry.id[:ID_LETTERS],
            entry.type,
            shape_line(entry.shape),
            format_bytes(entry.bytes),
            ago(now - entry.last_used),
            console.few(entry.models),
        )
    return made


def shape_line(shape: tuple[int, ...]) -> str:
    """A tensor's extents, without those of 1 before the others."""
    first = next((at for at, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    return " x ".join(map(str, shape[first:]))


def verify(settings: StoreConfig, *, as_json: bool) -> None:
    """Look at every byte; exit code 1 when something was damaged or could not be read."""
    store = _opened(settings)
    with byte_bar("verifying") as report:
        looked = store.verify(report)
    found = Verified(
        str(store.directory),
        len(looked.checked),
        tuple(entry.id for entry in looked.damaged),
        looked.unreadable,
    )
    if as_json:
        console.print_json(found)
    else:
        size = format_bytes(sum(entry.nbytes for entry in looked.checked))
        console.stdout().print(f"{console.count(found.whole, 'tensor')} whole, {size}")
        if found.damaged:
            console.complain(f"{len(found.damaged)} damaged and removed; what is missing is packed again")
        if found.unreadable:
            console.complain(f"{found.unreadable} unreadable")
    if found.damaged or found.unreadable:
        raise typer.Exit(1)


def prune(settings: StoreConfig, *, limit: str | None, as_json: bool) -> None:
    """Remove what this build cannot use, what no model file has and, for a limit, the longest unused."""
    store = _opened(settings)
    report = store.prune(size_of("--limit", limit), keep_build=_build(), keep_unused=False)
    _tell_removed(store, report, as_json=as_json)


def clear(settings: StoreConfig, *, as_json: bool) -> None:
    """Remove everything."""
    store = _opened(settings)
    _tell_removed(store, store.clear(), as_json=as_json)


def _tell_removed(store: Store, report: PruneReport, *, as_json: bool) -> None:
    held_bytes = sum(entry.nbytes for entry in report.held)
    refused_bytes = sum(entry.nbytes for entry in report.refused)
    found = Removed(
        directory=str(store.directory),
        entries=len(report.removed),
        bytes=report.freed_bytes,
        held_entries=len(report.held),
        held_bytes=held_bytes,
        refused_entries=len(report.refused),
        refused_bytes=refused_bytes,
    )
    if as_json:
        console.print_json(found)
    else:
        out = console.stdout()
        out.print(f"removed {console.count(found.entries, 'tensor')}, {format_bytes(found.bytes)}")
        if found.held_entries:
            held = console.count(found.held_entries, "tensor")
            out.print(f"left {held}, {format_bytes(held_bytes)}: in use by a running process")
    if found.refused_entries:
        refused = console.count(found.refused_entries, "tensor")
        console.fail(f"{refused}, {format_bytes(refused_bytes)}, cannot be removed from {store.directory}")


def _opened(settings: StoreConfig) -> Store:
    store = open_store(settings)
    if not store.directory.is_dir():
        console.complain(f"there is no store in {store.directory} yet")
    return store


def _build() -> str | None:
    """The build that this process would pack for; None without a llama.cpp that can be used."""
    from shardload.shards.pantry import packing_build

    try:
        return packing_build()
    except (OSError, NativeError):
        return None
