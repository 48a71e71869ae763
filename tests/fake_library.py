"""A manager over small files and a fake opener, with all that a test moves: files, clock, requests.

``from fake_library import Library`` works in every test file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import gguf
import numpy as np
from fake_opener import FakeClock, FakeOpener
from tiny_gguf import finish

from shardload.library.catalog import Catalog
from shardload.library.entry import Use
from shardload.library.lease import Lease
from shardload.library.manager import Manager
from shardload.library.status import ModelStatus


def write_model(path: Path, *, architecture: str = "llama", blocks: int = 2, **values: Any) -> Path:
    """Write a header like a small model's, with ``values`` over the defaults; ``__`` stands for dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "context_length": 512,
        "embedding_length": 64,
        "block_count": blocks,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    keys = {f"{architecture}.{key}": value for key, value in numbers.items()}
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    for key, value in keys.items():
        _add(writer, key, value)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    finish(writer)
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Sequence):
        writer.add_array(key, value)


@dataclass
class Library:
    """A manager over files in a folder, with everything a test wants to move."""

    folder: Path
    catalog: Catalog
    manager: Manager
    opener: FakeOpener
    clock: FakeClock
    tasks: anyio.abc.TaskGroup
    leases: list[Lease] = field(default_factory=list)

    async def lease(self, name: str, kind: Use = "generate", **options: Any) -> Lease:
        lease = await self.manager.lease(self.catalog.get(name), kind=kind, **options)
        self.leases.append(lease)
        return lease

    async def use(self, name: str, **options: Any) -> None:
        """Lease and give back, at a time of its own."""
        self.clock.now += 1.0
        (await self.lease(name, **options)).release()
        await self.rest()

    def request(self, name: str, kind: Use = "generate", **options: Any) -> Request:
        """Ask for a lease in a task of its own."""
        request = Request(self, name)
        self.tasks.start_soon(request.run, kind, options)
        return request

    async def rest(self) -> None:
        """Let everything happen that can without anybody's help."""
        for _ in range(40):
            await anyio.lowlevel.checkpoint()

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.manager.turn()
        await self.rest()

    def status(self, name: str) -> ModelStatus:
        return next(status for status in self.manager.status() if status.name == name)

    @property
    def open_names(self) -> set[str]:
        return self.names_in("open")

    def names_in(self, *states: str) -> set[str]:
        return {status.name for status in self.manager.status() if status.state in states}

    @property
    def used_bytes(self) -> int:
        return self.manager._ledger.used_bytes()


def moves(library: Library, kind: str) -> list[tuple[object, ...]]:
    """What was asked of the opener's memory, of one kind."""
    return [move for move in library.opener.moves if move[1] == kind]


class Request:
    """A request that may have to wait."""

    def __init__(self, library: Library, name: str) -> None:
        self._library, self._name = library, name
        self.lease: Lease | None = None
        self.error: Exception | None = None
        self.released = False
        self._scope = anyio.CancelScope()

    async def run(self, kind: Use, options: dict[str, Any]) -> None:
        with self._scope:
            try:
                self.lease = await self._library.lease(self._name, kind, **options)
            except Exception as error:
                self.error = error

    @property
    def waits(self) -> bool:
        return self.lease is None and self.error is None

    @property
    def cancelled(self) -> bool:
        return self._scope.cancel_called

    def cancel(self) -> None:
        self._scope.cancel()

    def release(self) -> None:
        assert self.lease is not None, f"{self._name}: {self.error!r}"
        self.released = True
        self.lease.release()


OpenLibrary = Callable[..., AbstractAsyncContextManager[Library]]
