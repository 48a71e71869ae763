"""Running the application under uvicorn, with signals that reach the application first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from shardload.config import Config, ServerConfig
from shardload.errors import ConfigError, ShardloadError
from shardload_server.app import create_app
from shardload_server.auth import warn_if_open
from shardload_server.stack import FAREWELL_SECONDS, Stack

logger = logging.getLogger("shardload.server")

Reload = Callable[[], Config]
Ready = Callable[[int], None]


class Server(uvicorn.Server):
    """uvicorn that tells the application of a stop before it waits for the connections to end.

    uvicorn waits for running responses first and ends the lifespan afterwards; without word the
    application would take new requests on kept connections, and long answers would never be cut.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        *,
        reload: Reload | None = None,
        started: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._app, self._reload_config, self._started = app, reload, started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        self._lifespan = contextlib.AsyncExitStack()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it; raises what keeps the stack from opening."""
        self._loop = asyncio.get_running_loop()
        async with self._lifespan:
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the stack and begin to listen."""
        # uvicorn's own way through the lifespan ends in a traceback whatever the error,
        # and leaves the end out when it is in a hurry.
        await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        await super().startup(sockets)
        if self.started and self._started is not None:
            self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, then the stack, while signals are still listened for."""
        await super().shutdown(sockets)
        await self._lifespan.aclose()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen for the signals that stop, and for the one that asks to look again."""
        in_main = threading.current_thread() is threading.main_thread()
        if self._loop is None or not in_main or not hasattr(signal, "SIGHUP"):
            with super().capture_signals():
                yield
            return
        self._loop.add_signal_handler(signal.SIGHUP, self._begin_reload)
        try:
            with super().capture_signals():
                yield
        finally:
            self._loop.remove_signal_handler(signal.SIGHUP)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on the first signal when answers have ended, on a second one at once."""
        # uvicorn would raise the signal again at the end: a stop that was asked for is a success here.
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell_application)

    @property
    def _stack(self) -> Stack | None:
        return getattr(self._app.state, "stack", None)

    def _tell_application(self) -> None:
        if (stack := self._stack) is None:
            return
        stack.begin_shutdown()
        if self.force_exit:
            stack.fail_running()

    def _begin_reload(self) -> None:
        # What was read may be out of date by now: a signal meanwhile asks for another round.
        self._reload_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self._keep_reloading())

    async def _keep_reloading(self) -> None:
        while self._reload_again:
            self._reload_again = False
            await self._reload()

    async def _reload(self) -> None:
        if (stack := self._stack) is None:
            return
        try:
            if self._reload_config is None:
                await stack.rescan()
            else:
                await stack.reconfigure(self._reload_config())
        except ShardloadError as error:
            logger.error("the configuration stays as it was: %s", error)
        except Exception:
            logger.exception("the configuration stays as it was")


def serve(config: Config, *, ready: Ready | None = None, reload: Reload | None = None) -> None:
    """Serve until SIGTERM or SIGINT; on SIGHUP ``reload`` reads the configuration anew.

    Without it the folders are looked at again. ``ready`` is called with the port once requests are taken.
    Raises ConfigError when the address cannot be had, and any ShardloadError that keeps the parts from
    opening.
    """
    with bind(config.server) as bound:
        warn_if_open(config.server)
        app = create_app(config)
        port: int = bound.getsockname()[1]
        server = Server(
            uvicorn_config(app, config.server),
            app,
            reload=reload,
            started=(lambda: ready(port)) if ready else None,
        )
        asyncio.run(server.serve(sockets=[bound]))


def uvicorn_config(app: Starlette, config: ServerConfig) -> uvicorn.Config:
    """How we run uvicorn: nothing that we do not use, and our own logging."""
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=int(config.shutdown_seconds + FAREWELL_SECONDS) + 1,
    )


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket; raises ConfigError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = (error.strerror or str(error)).lower()
        advice = "; choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {reason}{advice}") from error
    bound.set_inheritable(False)
    return bound
