"""Another file for a name that is being served: on request, by configuration, or because it changed on disk.

The new file is opened first; only then the name is moved. Requests for the name wait at a gate meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from shardload.config import Config
from shardload.errors import GGUFError, ModelUnavailable, OpenFailed, Overloaded, ShuttingDown
from shardload.library.catalog import Catalog, Replacement
from shardload.library.entry import FileKey, ModelEntry, Use
from shardload.library.facts import file_key
from shardload.library.holdings import ServedKey, served_key
from shardload.library.lease import Lease

RETRY_AFTER_SECONDS = 1.0

logger = logging.getLogger("shardload.library")


class Holder(Protocol):
    """The part of the manager that a replacement needs."""

    @property
    def queue_limit(self) -> int: ...
    async def obtain(self, entry: ModelEntry, kind: Use) -> Lease: ...
    def is_open(self, entry: ModelEntry) -> bool: ...
    def turn(self) -> None: ...
    async def look_again(self) -> None: ...


@dataclass(slots=True, eq=False)
class Gate:
    """Closed while a file is being replaced."""

    opened: anyio.Event = field(default_factory=anyio.Event)
    waiting: int = 0

    async def wait(self) -> None:
        """Wait until it opens."""
        self.waiting += 1
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1


class Replacements:
    """Moves names of a catalog to other files; of the manager's event loop."""

    def __init__(self, catalog: Catalog, holder: Holder) -> None:
        self._catalog, self._holder = catalog, holder
        self._gates: dict[str, Gate] = {}
        self._coming: set[ServedKey] = set()
        self._refused: dict[str, tuple[FileKey, str]] = {}

    def is_replacing(self, name: str) -> bool:
        """Whether requests for a name wait for another file now."""
        return name in self._gates

    def expects(self, key: ServedKey) -> bool:
        """Whether a name will stand for this soon."""
        return key in self._coming

    async def current(self, name: str) -> ModelEntry:
        """What a name stands for, after a replacement that is under way, and with its file as it is now.

        A file that was deleted, or replaced by one that cannot be served, goes on serving while it is open;
        raises ModelNotFound or OpenFailed when it is not, and Overloaded where too many wait already.
        """
        while True:
            if (gate := self._gates.get(name)) is not None:
                if gate.waiting >= self._holder.queue_limit:
                    raise Overloaded(name, gate.waiting, RETRY_AFTER_SECONDS)
                await gate.wait()
                continue
            entry = self._catalog.get(name)
            if entry.name != name:
                name = entry.name
                continue
            try:
                key = file_key(entry.paths)
            except OSError as error:
                if self._holder.is_open(entry):
                    return entry
                await self._holder.look_again()
                if self._catalog.get(name) is entry:
                    raise OpenFailed(name, f"{entry.path}: {error.strerror}") from error
                continue
            if key == entry.file_key or not await self._refresh(entry, key):
                return entry

    async def swap(self, name: str, path: Path) -> None:
        """Move a name, and the virtual models on it, to another file."""
        async with self._gate(name):
            try:
                prepared = await anyio.to_thread.run_sync(self._catalog.prepare, name, path)
            except GGUFError as error:
                raise OpenFailed(name, str(error)) from error
            await self._open_and_commit(prepared)

    async def reconfigure(self, config: Config) -> None:
        """Take over a configuration; new files of open models are opened before. Raises ConfigError."""
        new = await anyio.to_thread.run_sync(Catalog, config)
        async with AsyncExitStack() as gates:
            try:
                if keep := await self._open_moved(new, gates):
                    new = await anyio.to_thread.run_sync(Catalog, config, keep)
                self._catalog.adopt(new)
            finally:
                self._coming.clear()
            self._refused.clear()

    async def _open_moved(self, new: Catalog, gates: AsyncExitStack) -> dict[str, Path]:
        """Open what open names will stand for; returns the old files of those for which it does not open."""
        keep: dict[str, Path] = {}
        for entry in self._catalog.entries():
            moved = next((other for other in new.entries() if other.name == entry.name), None)
            if moved is None or moved.file_key == entry.file_key or not self._holder.is_open(entry):
                continue
            if entry.name not in self._gates:
                await gates.enter_async_context(self._gate(entry.name))
            self._coming.add(served_key(moved))
            try:
                (await self._holder.obtain(moved, moved.kind)).release()
            except ModelUnavailable as error:
                logger.warning("%s keeps %s: %s", entry.name, entry.path, error)
                keep[new.root(entry.name)] = entry.path
        return keep

    async def _refresh(self, entry: ModelEntry, key: FileKey) -> bool:
        """Take over a file that changed on disk; False to go on with the old one, which is open."""
        name = self._catalog.root(entry.name)
        refused_key, reason = self._refused.get(name, ((), ""))
        # One that could not be opened beside the old one may well open in its place.
        if key != refused_key or not self._holder.is_open(entry):
            async with self._gate(name):
                try:
                    prepared = await anyio.to_thread.run_sync(self._catalog.prepare, name)
                    if self._holder.is_open(entry) and not _same_inode(entry.file_key, key):
                        await self._open_and_commit(prepared)
                    else:
                        self._catalog.commit(prepared)
                    return True
                except ShuttingDown:
                    raise
                except (GGUFError, ModelUnavailable) as error:
                    reason = error.reason if isinstance(error, OpenFailed) else str(error)
                    self._refused[name] = key, reason
                    logger.warning("the new file of %s is not taken over: %s", name, reason)
        if self._holder.is_open(entry) and not _same_inode(entry.file_key, key):
            return False
        raise OpenFailed(entry.name, reason)

    async def _open_and_commit(self, prepared: Replacement) -> None:
        new = prepared.entry
        with await self._holder.obtain(new, new.kind):
            self._catalog.commit(prepared)
            self._refused.pop(new.name, None)
            logger.info("%s is now %s", new.name, new.path)

    @asynccontextmanager
    async def _gate(self, name: str) -> AsyncIterator[None]:
        """Hold requests for a name and for the virtual models on it, after other replacements of them."""
        while (other := self._gates.get(self._catalog.get(name).name)) is not None:
            await other.wait()
        gate, names = Gate(), self._catalog.dependents(name)
        self._gates |= dict.fromkeys(names, gate)
        try:
            yield
        finally:
            for held in names:
                if self._gates.get(held) is gate:
                    del self._gates[held]
            gate.opened.set()
            self._holder.turn()


def _same_inode(old: FileKey, new: FileKey) -> bool:
    """Whether a file was written over in place: then the pages of the old one show the new one's bytes."""
    return not {part[:2] for part in old}.isdisjoint(part[:2] for part in new)
