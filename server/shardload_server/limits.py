"""The limits on request bodies: how large they are, and how long a client may be silent in the middle."""

from __future__ import annotations

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardload.errors import format_bytes
from shardload_server.errors import failure_of
from shardload_server.responses import failure_response

SILENCE_SECONDS = 30.0
"""How long the next piece of a body may take: who sends no more holds a connection, and a stop, up."""


class BodyLimitMiddleware:
    """Answers 413 to a body above the limit, from its announced length or as soon as it has come in.

    A body that stops coming in is answered with 408.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _announced_bytes(scope) > self.max_body_bytes:
            await failure_response(failure_of(self._too_large()))(scope, receive, send)
            return
        received_bytes, complete = 0, False

        async def counted() -> Message:
            nonlocal received_bytes, complete
            message = await (receive() if complete else _soon(receive))
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received_bytes > self.max_body_bytes:
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        limit = f"{format_bytes(self.max_body_bytes)} ({self.max_body_bytes} bytes)"
        return HTTPException(413, f"the request body is larger than {limit}: see max_body_bytes")


async def _soon(receive: Receive) -> Message:
    try:
        with anyio.fail_after(SILENCE_SECONDS):
            return await receive()
    except TimeoutError as error:
        message = f"the request body stopped in the middle: nothing came for {SILENCE_SECONDS:g} seconds"
        raise HTTPException(408, message) from error


def _announced_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:20]) if value.isdigit() else 0
    return 0
