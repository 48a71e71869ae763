"""The models: what there is, what is open, and opening and closing by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardload.errors import ShuttingDown
from shardload.library.entry import ModelEntry
from shardload.routing import AUTO
from shardload_server.dialects.openai.models import OWNER, model_body, model_list
from shardload_server.dialects.openai.requests import keep_alive_seconds
from shardload_server.dialects.router import router_model
from shardload_server.parsing import parse_body
from shardload_server.responses import json_response
from shardload_server.stack import Stack

if TYPE_CHECKING:
    from shardload.library.manager import ModelStatus


class LoadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /models/load``; with ``path`` the model's name is given that file."""

    model: str
    path: str | None = None
    pin: bool | None = None
    keep_alive: str | float | None = None


class UnloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /models/unload``."""

    model: str


class PinBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /models/pin``."""

    model: str
    pinned: bool = True


async def list_models(request: Request) -> Response:
    """``GET /v1/models``; where rules choose, ``auto`` is the last of them, to be found in clients' menus."""
    stack = _stack(request)
    await stack.manager.look_again()
    found = model_list(stack.catalog.entries())
    if stack.config.routes:
        found["data"].append(_automatic(stack))
    return json_response(found)


async def show_model(request: Request) -> Response:
    """``GET /v1/models/{id}``; ids may hold slashes."""
    stack, name = _stack(request), request.path_params["id"]
    return json_response(_automatic(stack) if name == AUTO else model_body(await stack.find(name)))


async def list_states(request: Request) -> Response:
    """``GET /models``: the same list as other local routers give, and with all that we know."""
    stack = _stack(request)
    await stack.manager.look_again()
    statuses = {status.name: status for status in stack.manager.status()}
    known = [(entry, statuses[entry.name]) for entry in stack.catalog.entries() if entry.name in statuses]
    return json_response(
        {
            "object": "list",
            "data": [router_model(entry, status) for entry, status in known],
            "models": [_state(entry, status) for entry, status in known],
        }
    )


async def load_model(request: Request) -> Response:
    """``POST /models/load``: answers when the model is open."""
    body, stack = parse_body(await request.body(), LoadBody), _stack(request)
    if stack.in_flight.stopping:
        raise ShuttingDown
    seconds = keep_alive_seconds(body.keep_alive)
    await stack.find(body.model)
    if body.path is not None:
        await stack.manager.swap(body.model, Path(body.path))
    await stack.manager.load(body.model, pin=body.pin, keep_alive_seconds=seconds)
    return _done(stack, body.model)


async def unload_model(request: Request) -> Response:
    """``POST /models/unload``: answers when the model is closed; ``unpinned`` names what was pinned to it."""
    body, stack = parse_body(await request.body(), UnloadBody), _stack(request)
    unpinned = await stack.manager.unload(body.model)
    return _done(stack, body.model, unpinned=unpinned)


async def pin_model(request: Request) -> Response:
    """``POST /models/pin``: hold a model in memory, or hold it no longer."""
    body, stack = parse_body(await request.body(), PinBody), _stack(request)
    await stack.find(body.model)
    stack.manager.pin(body.model, body.pinned)
    return _done(stack, body.model)


def _automatic(stack: Stack) -> dict[str, Any]:
    """The router as a model: it can do whatever one of the models can."""
    capabilities = {each for entry in stack.catalog.entries() for each in entry.capabilities}
    return {
        "id": AUTO,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "aliases": (),
        "capabilities": sorted(capabilities),
        "meta": None,
    }


def _done(stack: Stack, model: str, **more: object) -> Response:
    entry = stack.catalog.get(model)
    status = next(status for status in stack.manager.status() if status.name == entry.name)
    return json_response({"success": True, **_state(entry, status), **more})


def _state(entry: ModelEntry, status: ModelStatus) -> dict[str, Any]:
    return {
        "name": entry.name,
        "state": status.state,
        "aliases": entry.aliases,
        "base": entry.base,
        "path": str(entry.path),
        "capabilities": sorted(entry.capabilities),
        "architecture": entry.architecture,
        "parameter_count": entry.parameter_count,
        "size_bytes": status.size_bytes,
        "resident_bytes": status.resident_bytes,
        "warm_share": status.warm_share,
        "resident_limit_bytes": status.resident_limit_bytes,
        "shared_bytes": status.shared_bytes,
        "packed_bytes": status.packed_bytes,
        "second_layout_bytes": status.second_bytes,
        "private_bytes": status.private_bytes,
        "kv_bytes": status.kv_bytes,
        "ctx_tokens": status.ctx_tokens,
        "slots": status.slots,
        "leases": status.leases,
        "queued": status.queued,
        "pinned": status.pinned,
        "expires_in_seconds": status.expires_in_seconds,
        "opens": status.opens,
        "evictions": status.evictions,
        "page_in_bytes": status.page_ins,
        "page_out_bytes": status.page_outs,
        "page_wait_seconds": status.waited_seconds,
        "error": status.error,
    }


def _stack(request: Request) -> Stack:
    stack: Stack = request.app.state.stack
    return stack


ROUTES = (
    Route("/v1/models", list_models),
    Route("/v1/models/{id:path}", show_model),
    Route("/models", list_states),
    Route("/models/load", load_model, methods=["POST"]),
    Route("/models/unload", unload_model, methods=["POST"]),
    Route("/models/pin", pin_model, methods=["POST"]),
)
