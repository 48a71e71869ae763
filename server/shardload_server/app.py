"""The ASGI application."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from shardload.config import Config, load_config
from shardload.demo import demo_folder
from shardload.errors import ShardloadError
from shardload_server.auth import KeyMiddleware, KeyRing, configured_keys
from shardload_server.errors import failure_of
from shardload_server.limits import BodyLimitMiddleware
from shardload_server.outcome import OutcomeMiddleware
from shardload_server.responses import failure_response
from shardload_server.routes import routes
from shardload_server.stack import StackFactory, open_stack

CONFIG_VARIABLE, KEY_VARIABLE = "SHARDLOAD_CONFIG", "SHARDLOAD_API_KEY"

logger = logging.getLogger("shardload.server")


def create_app(config: Config | None = None, *, stack_factory: StackFactory = open_stack) -> Starlette:
    """The application for ``config``; models are opened by its lifespan, so that any ASGI host can run it.

    ``app.state.stack`` is there while it runs. Raises ConfigError when a file of keys cannot be read.
    """
    config = config or Config()
    ring = KeyRing(configured_keys(config.server))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with stack_factory(config, ring) as stack:
            app.state.stack = stack
            try:
                yield
            finally:
                await stack.drain()

    app = Starlette(
        routes=routes(),
        middleware=[
            Middleware(OutcomeMiddleware),
            Middleware(KeyMiddleware, ring=ring),
            Middleware(BodyLimitMiddleware, max_body_bytes=config.server.max_body_bytes),
        ],
        exception_handlers={ShardloadError: _phrase, HTTPException: _phrase},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def app_from_environment() -> Starlette:
    """The application of the configuration file that SHARDLOAD_CONFIG names; a factory for ASGI hosts.

    Without one it serves the demo models. The keys in SHARDLOAD_API_KEY, with blanks between them, join those
    of the file. Raises ConfigError.
    """
    path = os.environ.get(CONFIG_VARIABLE)
    config = load_config(path) if path else Config(folders=(str(demo_folder()),))
    keys = (*config.server.api_keys, *os.environ.get(KEY_VARIABLE, "").split())
    config = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, api_keys=keys))
    if not configured_keys(config.server):
        # The address is the host's affair, and not known here.
        logger.warning(
            "no API key is asked for: everybody who reaches this server's port can use its models; set %s",
            KEY_VARIABLE,
        )
    return create_app(config)


async def _phrase(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 404:
        error = HTTPException(404, f"there is nothing at {request.method} {request.url.path}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        error = HTTPException(
            405, f"{request.method} is not for {request.url.path}: use {allowed}", headers=error.headers
        )
    return failure_response(failure_of(error))
