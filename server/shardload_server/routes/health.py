"""Signs of life: the root, liveness and metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardload._version import __version__
from shardload_server.responses import json_response
from shardload_server.stack import Stack


async def root(request: Request) -> Response:
    """Say what this is and where to go on."""
    routes = (route.path for route in request.app.routes if isinstance(route, Route))
    paths = {path.replace("{id:path}", "{id}") for path in routes} - {"/"}
    return json_response({"name": "shardload", "version": __version__, "paths": sorted(paths)})


async def health(request: Request) -> Response:
    """Answer 200 while requests are taken, 503 while the server stops."""
    stack: Stack = request.app.state.stack
    if stack.in_flight.stopping:
        return json_response({"status": "shutting down"}, 503)
    return json_response({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Answer a scrape."""
    stack: Stack = request.app.state.stack
    text, content_type = stack.metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


ROUTES = (
    Route("/", root),
    Route("/health", health),
    Route("/v1/health", health),
    Route("/metrics", metrics),
)
