"""One request while it is answered: ended early by a client that leaves, or by the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio
from starlette.types import Receive

from shardload.errors import ShardloadError, ShuttingDown

T = TypeVar("T")


class ClientLeft(Exception):
    """Raised inside an answer whose client is gone: there is nobody to tell, only things to give back."""


class Exchange:
    """A running answer; event loop only."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._failure: ShardloadError | None = None

    def fail(self, error: ShardloadError) -> None:
        """End the answer with ``error``; nothing after the first failure counts."""
        if self._failure is None:
            self._failure = error
            self._scope.cancel()

    async def run(self, receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work to its end; raises ClientLeft when the client leaves, or what ``fail`` was given.

        A server reports the end of the connection by ``receive`` alone, so that is watched all along.
        """
        watcher = asyncio.create_task(self._watch(receive))
        try:
            with self._scope:
                return await work()
        finally:
            watcher.cancel()
        raise self._failure or ClientLeft

    async def _watch(self, receive: Receive) -> None:
        # A host whose receive fails has lost the connection just as well.
        with suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        self._scope.cancel()


class InFlight:
    """The exchanges of an application, and whether new ones are admitted; event loop only."""

    def __init__(self) -> None:
        self._running: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopping = False

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def admit(self) -> Iterator[Exchange]:
        """An exchange that counts as running inside the block; raises ShuttingDown once admission ended."""
        if self.stopping:
            raise ShuttingDown
        exchange = Exchange()
        self._running.add(exchange)
        self._idle.clear()
        try:
            yield exchange
        finally:
            self._running.discard(exchange)
            if not self._running:
                self._idle.set()

    def stop_admitting(self) -> None:
        """Refuse every further exchange; those that run go on."""
        self.stopping = True

    def fail_all(self, error: ShardloadError) -> None:
        """End all running exchanges with ``error``."""
        for exchange in tuple(self._running):
            exchange.fail(error)

    async def drained(self) -> None:
        """Wait until nothing runs any more."""
        await self._idle.wait()
