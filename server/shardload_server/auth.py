"""Who may ask: a middleware that wants an API key, or without any keeps strangers' web pages out."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
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
PRIVATE_DOMAIN = ".internal"
"""Public name servers know no such names, so that no page is under one; containers ask their host by them."""

logger = logging.getLogger("shardload.server")


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

    While the ring is empty, answers 403 to what strangers' web pages send: a browser sends that without
    asking, wherever it was led.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self.app, self.ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            error = self._without_key(scope) if self.ring else _of_a_page(scope)
            if error is not None:
                await failure_response(failure_of(error))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _without_key(self, scope: Scope) -> HTTPException | None:
        key = presented_key(scope)
        if self.ring.admits(key):
            return None
        wrong = "the API key is not valid" if key else "an API key is needed"
        return HTTPException(
            401,
            f"{wrong}: send it as 'Authorization: Bearer KEY'",
            headers={"www-authenticate": "Bearer"},
        )


def _of_a_page(scope: Scope) -> HTTPException | None:
    stack = getattr(scope["app"].state, "stack", None)
    config: ServerConfig = stack.config.server if stack is not None else ServerConfig()
    if host := unknown_host(scope, config):
        advice = "name it in allowed_hosts of [server], or start the server with an API key"
        return HTTPException(403, f"this server does not go by the name of {host}: {advice}")
    if origin := foreign_origin(scope, config):
        return HTTPException(403, f"pages of {origin} may not ask here: start the server with an API key")
    return None


def unknown_host(scope: Scope, config: ServerConfig) -> str | None:
    """The name by which the request asks for this server, unless it is an address or a name that is known.

    A page has had its own name resolve to this machine, and passes for one of ours then. Names count where
    only this machine reaches us, or where some are allowed; by addresses no page can come.
    """
    asked = Headers(scope=scope).get("host")
    local_address = (scope.get("server") or ("",))[0]
    counts = config.allowed_hosts or (is_loopback(config.host) and is_loopback(local_address))
    if not asked or not counts:
        return None
    host = _host_name(f"//{asked}")
    ours = is_loopback(host) or host.endswith(PRIVATE_DOMAIN) or _is_allowed(host, config)
    return None if ours or _is_address(host) else asked


def foreign_origin(scope: Scope, config: ServerConfig) -> str | None:
    """The web page's origin that posts this, unless it is on this machine or on a host that we are."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if not origin:
        return None
    scheme, mark, netloc = origin.partition("://")
    # Desktop programs have schemes of their own; "null" is whoever does not say, a sandboxed page as well.
    if mark and scheme.lower() not in ("http", "https"):
        return None
    host = _host_name(origin)
    ours = is_loopback(host) or _is_allowed(host, config) or netloc == headers.get("host")
    return None if netloc and ours else origin


def warn_if_open(config: ServerConfig) -> None:
    """Say so when other machines can reach the server and nothing asks for a key."""
    if not is_loopback(config.host) and not configured_keys(config):
        logger.warning(
            "listening on %s without an API key: everybody who reaches this machine can use its models; "
            "set --api-key, or bind to 127.0.0.1",
            config.host or "all addresses",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_allowed(host: str, config: ServerConfig) -> bool:
    return host in [name.lower() for name in config.allowed_hosts]


def _host_name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removesuffix(".")
    except ValueError:
        return ""


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
