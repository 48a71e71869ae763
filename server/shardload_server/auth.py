"""Who may ask: a middleware that wants an API key, or without any keeps the pages of strangers out."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from shardload.config import ServerConfig
from shardload.errors import ConfigError
from shardload_server.errors import failure_of
from shardload_server.responses import failure_response

OPEN_PATHS = frozenset({"/health", "/v1/health"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class KeyRing:
    """The keys that open the server; without any, everything is open."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.replace(keys)

    def replace(self, keys: Iterable[str]) -> None:
        """Take other keys from now on."""
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, key: str | None) -> bool:
        """Whether ``key`` is one of ours; takes the same time whichever it is, and how much of it fits."""
        digest = _digest(key or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches) and key is not None


class KeyMiddleware:
    """Answers 401 to requests without a key of the ring; liveness probes need none.

    While the ring is empty, answers 403 to what a web page of another host posts: a browser sends that
    without asking, wherever it was led.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self.app, self.ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.ring and scope["path"] not in OPEN_PATHS:
            key = presented_key(scope)
            if not self.ring.admits(key):
                wrong = "the API key is not valid" if key else "an API key is needed"
                error = HTTPException(
                    401,
                    f"{wrong}: send it as 'Authorization: Bearer KEY'",
                    headers={"www-authenticate": "Bearer"},
                )
                await failure_response(failure_of(error))(scope, receive, send)
                return
        if scope["type"] == "http" and not self.ring and (origin := foreign_origin(scope)):
            error = HTTPException(
                403, f"pages of {origin} may not ask here: start the server with an API key"
            )
            await failure_response(failure_of(error))(scope, receive, send)
            return
        await self.app(scope, receive, send)


def foreign_origin(scope: Scope) -> str | None:
    """The web page's origin that posts this, unless it is on this machine or on the host that it asks."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    headers = Headers(scope=scope)
    origin = headers.get("origin", "")
    try:
        parts = urlsplit(origin)
        host = parts.hostname
    except ValueError:
        return origin
    # Desktop programs have schemes of their own.
    if parts.scheme not in ("http", "https") or host in LOOPBACK_HOSTS or parts.netloc == headers.get("host"):
        return None
    return origin


def presented_key(scope: Scope) -> str | None:
    """The key that a request brings along, as a bearer token or as ``x-api-key``."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def configured_keys(config: ServerConfig) -> tuple[str, ...]:
    """The keys of a configuration, those of its key file included (one a line, ``#`` for comments)."""
    keys = [key for key in config.api_keys if key]
    if config.api_key_file:
        keys += _keys_of_file(config.api_key_file)
    return tuple(keys)


def _keys_of_file(path: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ConfigError(f"the file of API keys cannot be read: {reason}", path=path) from error
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ConfigError("the file of API keys holds no key", path=path)
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
