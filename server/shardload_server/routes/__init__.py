"""The paths of the server."""

from __future__ import annotations

from starlette.routing import BaseRoute

from shardload_server.routes import answers, health, models, shards


def routes() -> list[BaseRoute]:
    """Every route; the first that fits is taken."""
    return [*health.ROUTES, *answers.ROUTES, *models.ROUTES, *shards.ROUTES]
