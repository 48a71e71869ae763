"""``shardload pack``: have models in the packed store before anybody asks them anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import typer

from shardload.config import StoreConfig
from shardload.errors import GGUFError, LoadFailed, ShardloadError, UnsupportedLlama, format_bytes
from shardload.library.facts import read_facts
from shardload.shards.store import Store
from shardload_server.cli import console
from shardload_server.cli.progress import Report, byte_bar
from shardload_server.cli.settings import open_store

CANNOT_PACK = "where this llama.cpp keeps packed weights cannot be told: see `shardload doctor`"
NAME_LETTERS = 24

Stops = Callable[[], bool]
Pack = Callable[["Sequence[Path]", Store, Report, Stops], "PackedBytes"]
"""Packs one model, given by its parts, into a store, on a thread that llama.cpp may keep; ends early when
it is told to. Raises StoreFull, StoreUnavailable and LoadFailed.
"""


class PackedBytes(msgspec.Struct, frozen=True):
    """Bytes of one model that are in the store now; none for one whose types have no packed order here."""

    written: int
    there_before: int


class Packed(msgspec.Struct, frozen=True):
    """What became of one file."""

    path: str
    written_bytes: int
    there_before_bytes: int
    seconds: float
    error: str | None = None
    """Why it is not packed."""


def pack_files(
    paths: Sequence[Path], settings: StoreConfig, *, as_json: bool, pack: Pack | None = None
) -> None:
    """Pack files one after the other; what is in the store already is left as it is.

    One that cannot be packed keeps no other from it; exit code 1 says at the end that there was one.
    """
    store = open_store(settings)
    pack = pack or pack_model
    done: dict[tuple[Path, ...], Packed] = {}
    for path in paths:
        parts: tuple[Path, ...] = (path.expanduser().absolute(),)
        try:
            parts = tuple(part.absolute() for part in read_facts(parts[0]).paths)
            if parts in done:
                continue
            done[parts] = _packed(parts, store, pack)
        except (ShardloadError, OSError) as error:
            done[parts] = Packed(str(parts[0]), 0, 0, 0.0, _reason(error))
            console.complain(line(done[parts]))
        else:
            if not as_json:
                console.stdout().print(line(done[parts]), soft_wrap=True)
    if as_json:
        console.print_json(list(done.values()))
    if any(packed.error for packed in done.values()):
        raise typer.Exit(1)


def _packed(parts: tuple[Path, ...], store: Store, pack: Pack) -> Packed:
    started = time.perf_counter()
    with byte_bar(f"loading {_short(parts[0])}") as report:
        found = _interruptible(partial(pack, parts, store, report))
    return Packed(str(parts[0]), found.written, found.there_before, round(time.perf_counter() - started, 3))


def _reason(error: ShardloadError | OSError) -> str:
    """What is wrong with a file, whose name is said before it."""
    if isinstance(error, GGUFError | LoadFailed):
        return " ".join(error.reason.split())
    return str(console.phrase(error))


def _interruptible(work: Callable[[Stops], PackedBytes]) -> PackedBytes:
    """Work on another thread: an interrupt that came while C code calls back would be lost."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="shardload-pack") as thread:
        done = thread.submit(work, stopped.is_set)
        try:
            return done.result()
        except BaseException:
            stopped.set()
            raise


def _short(path: Path) -> str:
    """A file's name that leaves a bar some room."""
    return path.name if len(path.name) <= NAME_LETTERS else f"{path.name[: NAME_LETTERS - 1]}…"


def line(packed: Packed) -> str:
    """What became of a file, in words."""
    name = Path(packed.path).name
    if packed.error:
        return f"{packed.path}: {packed.error}"
    if packed.written_bytes:
        before = (
            f"; {format_bytes(packed.there_before_bytes)} were there" if packed.there_before_bytes else ""
        )
        return f"{name}: packed {format_bytes(packed.written_bytes)} in {packed.seconds:.1f} s{before}"
    if packed.there_before_bytes:
        return f"{name}: is packed already ({format_bytes(packed.there_before_bytes)})"
    return f"{name}: nothing to pack: this processor computes on it as it lies in the file"


def pack_model(paths: Sequence[Path], store: Store, report: Report, stops: Stops) -> PackedBytes:
    """Open a model as a server would, and write behind it what llama.cpp packed."""
    from shardload.llama import Model, ModelParams
    from shardload.llama.packing import pack
    from shardload.shards.pantry import Pantry, packing_build

    size, name = sum(path.stat().st_size for path in paths), _short(paths[0])

    def loaded(fraction: float) -> bool:
        report(int(fraction * size), size)
        return not stops()

    with closing(Pantry(store, packing_build())) as pantry:
        params = ModelParams(use_extra_bufts=True, shelf=pantry.shelf(paths))
        with Model.open(paths, params, loaded) as model:
            if not model.tensors:
                raise UnsupportedLlama(CANNOT_PACK)
            before = sum(
                stored.length
                for placed in model.tensors
                if placed.packing is not None and (stored := placed.packing.stored) is not None
            )
            private = model.private_tensor_bytes
            pack(
                model,
                pantry,
                stops=stops,
                progress=lambda stage, done, total: report(done, total, f"{stage} {name}"),
            )
            return PackedBytes(private - model.private_tensor_bytes, before)
