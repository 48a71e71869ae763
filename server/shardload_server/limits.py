"""The limit on the size of request bodies."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardload.errors import format_bytes
from shardload_server.errors import failure_of
from shardload_server.responses import failure_response


class BodyLimitMiddleware:
    """Answers 413 to a body above the limit, from its announced length or as soon as it has come in."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _announced_bytes(scope) > self.max_body_bytes:
            await failure_response(failure_of(self._too_large()))(scope, receive, send)
            return
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > self.max_body_bytes:
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        limit = f"{format_bytes(self.max_body_bytes)} ({self.max_body_bytes} bytes)"
        return HTTPException(413, f"the request body is larger than {limit}: see max_body_bytes")


def _announced_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:20]) if value.isdigit() else 0
    return 0
