"""The conditions of a ``[[routes]]`` rule, each checked on its own so that a refusal can be explained."""

from __future__ import annotations

from collections.abc import Iterator

from shardload.config import RouteMatch
from shardload.routing.features import RequestFeatures

ANY_MODEL = "*"


def failed_condition(match: RouteMatch, features: RequestFeatures) -> str | None:
    """The first condition of a rule that the request fails, in words; None when all hold.

    The model is not a condition: a rule is looked at only for requests of its model.
    """
    return next(_failures(match, features), None)


def _failures(match: RouteMatch, features: RequestFeatures) -> Iterator[str]:
    if match.endpoint is not None and match.endpoint != features.endpoint:
        yield f"endpoint is {features.endpoint}, not {match.endpoint}"
    if match.min_prompt_tokens is not None and features.prompt_tokens < match.min_prompt_tokens:
        yield f"about {features.prompt_tokens} prompt tokens, fewer than {match.min_prompt_tokens}"
    if match.max_prompt_tokens is not None and features.prompt_tokens > match.max_prompt_tokens:
        yield f"about {features.prompt_tokens} prompt tokens, more than {match.max_prompt_tokens}"
    if match.min_context_tokens is not None and features.context_tokens < match.min_context_tokens:
        yield f"about {features.context_tokens} context tokens, fewer than {match.min_context_tokens}"
    for name in ("tools", "json_schema", "images"):
        wanted, has = getattr(match, name), getattr(features, name)
        if wanted is not None and wanted != has:
            yield f"{name} is {str(has).lower()}, not {str(wanted).lower()}"
    for name, value in match.headers.items():
        if features.headers.get(name.lower()) != value:
            yield f"header {name} is not {value!r}"
    # A key is a secret: the explanation never repeats it.
    if match.key is not None and match.key != features.key:
        yield "another key, or none"
