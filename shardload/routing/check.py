"""Whether the models that rules name exist."""

from __future__ import annotations

import difflib

from shardload.config import Config
from shardload.errors import ModelNotFound, ModelUnavailable
from shardload.routing.choose import AUTO, CatalogView


def check_routes(config: Config, catalog: CatalogView) -> None:
    """Raise ConfigError, with its line, for the first target or fallback of a rule that exists nowhere.

    A model whose file cannot be served exists. What a rule matches may be any name: clients ask for it.
    """
    for index, route in enumerate(config.routes):
        _check(config, catalog, route.target, f"the target of the route {route.name!r}", index, "target")
        for position, name in enumerate(route.fallbacks):
            what = f"a fallback of the route {route.name!r}"
            _check(config, catalog, name, what, index, "fallbacks", position)


def _check(config: Config, catalog: CatalogView, name: str, what: str, *place: str | int) -> None:
    if name == AUTO:
        return
    try:
        catalog.get(name)
    except ModelNotFound as error:
        near = difflib.get_close_matches(name, error.available, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(error.available) or 'none'}"
        raise config.error(f"{what} is {name!r}, which is no model: {hint}", "routes", *place) from error
    except ModelUnavailable:
        pass
