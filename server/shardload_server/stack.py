"""What an application serves with, assembled from a configuration and taken apart in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import msgspec

from shardload.config import Config
from shardload.errors import ModelNotFound, OpenFailed, ShuttingDown
from shardload.runtime import assembled
from shardload_server.auth import KeyRing, configured_keys, warn_if_open
from shardload_server.exchange import InFlight
from shardload_server.metrics import Metrics

if TYPE_CHECKING:
    from shardload.library.catalog import Catalog
    from shardload.library.entry import ModelEntry
    from shardload.library.manager import Manager
    from shardload.service import Service

FAREWELL_SECONDS = 5.0
"""How long failed answers may take to tell their clients."""

logger = logging.getLogger("shardload.server")


class Stack:
    """The parts of a running application; event loop only, but for ``begin_shutdown``."""

    def __init__(
        self, config: Config, *, catalog: Catalog, manager: Manager, service: Service, keys: KeyRing
    ) -> None:
        self.config = config
        self.catalog, self.manager, self.service, self.keys = catalog, manager, service, keys
        self.in_flight = InFlight()
        self.metrics = Metrics(manager.status)
        self._deadline: asyncio.TimerHandle | None = None

    def begin_shutdown(self) -> None:
        """Refuse new requests; those that run have ``shutdown_seconds``, and fail then. Idempotent."""
        if self._deadline is not None:
            return
        self.in_flight.stop_admitting()
        seconds = self.config.server.shutdown_seconds
        if running := len(self.in_flight):
            logger.info(
                "shutting down: %s may finish within %g s, and a second signal cuts off what runs",
                _requests(running),
                seconds,
            )
        else:
            logger.info("shutting down")
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.fail_running)

    def fail_running(self) -> None:
        """End every running request with ShuttingDown."""
        if running := len(self.in_flight):
            logger.warning("shutting down: %s cut off", _requests(running))
        self.in_flight.fail_all(ShuttingDown())

    async def drain(self) -> None:
        """Shut down and wait until no request runs: at most the deadline and a moment to say so."""
        self.begin_shutdown()
        with anyio.move_on_after(self.config.server.shutdown_seconds + FAREWELL_SECONDS):
            await self.in_flight.drained()
        if self._deadline is not None:
            self._deadline.cancel()

    async def find(self, name: str) -> ModelEntry:
        """A model by its name, whose file may have come just now; raises ModelNotFound and OpenFailed."""
        try:
            return self.catalog.get(name)
        except (ModelNotFound, OpenFailed):
            await self.manager.look_again()
            return self.catalog.get(name)

    async def rescan(self) -> None:
        """Look at the folders of the configuration again."""
        await self.manager.look_again(at_once=True)
        logger.info("looked at the folders again: %d models", len(self.catalog.names()))

    async def reconfigure(self, config: Config) -> None:
        """Serve by another configuration from now on; host, port and body limit stay as they are."""
        server = msgspec.structs.replace(config.server, host=self.config.server.host)
        config = msgspec.structs.replace(config, server=server)
        keys = configured_keys(server)
        await self.manager.reconfigure(config)
        self.service.routes = config.routes
        self.keys.replace(keys)
        self.config = config
        logger.info("configuration taken over: %d models", len(self.catalog.names()))
        warn_if_open(server)


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"


StackFactory = Callable[[Config, KeyRing], AbstractAsyncContextManager[Stack]]


@asynccontextmanager
async def open_stack(config: Config, keys: KeyRing) -> AsyncIterator[Stack]:
    """The real parts: files, compute lane, llama.cpp, manager, service."""
    async with assembled(config) as parts:
        yield Stack(config, catalog=parts.catalog, manager=parts.manager, service=parts.service, keys=keys)
