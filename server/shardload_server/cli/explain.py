"""``shardload route explain``: the router's decision for a request, without opening anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shardload.errors import ConfigError, RequestError
from shardload_server.cli import console

if TYPE_CHECKING:
    from shardload.config import Config
    from shardload.library.entry import ModelEntry
    from shardload.requests import Request
    from shardload.routing import Decision, Residency

ENDPOINT_FIELDS = {"chat": "messages", "completion": "prompt", "embedding": "input"}


class Explanation(msgspec.Struct, frozen=True):
    """A decision as JSON gives it."""

    model: str
    rule: str
    candidates: tuple[tuple[str, str], ...]
    trace: tuple[str, ...]


def explain(
    path: Path,
    config_path: Path | None,
    *,
    endpoint: str | None,
    headers: tuple[str, ...],
    key: str | None,
    as_json: bool,
) -> None:
    """Print which model would answer the request in a file, and what every rule said."""
    body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    decision = decide(_config(config_path), parse(body, endpoint), dict(map(_header, headers)), key)
    candidates = tuple((each.entry.name, each.reason) for each in decision.candidates)
    found = Explanation(candidates[0][0], decision.rule, candidates, decision.trace)
    if as_json:
        console.print_json(found)
        return
    out = console.stdout()
    out.print(f"{found.model}   by {found.rule}", style="bold", soft_wrap=True)
    for line in found.trace:
        out.print(f"  {line}", soft_wrap=True)


def _config(path: Path | None) -> Config:
    from shardload_server.cli.serve import ServeOptions, configure

    return configure(ServeOptions(config=path))


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ConfigError(f"--header {text!r} is not NAME:VALUE")
    return name.strip().lower(), value.strip()


def parse(body: bytes, endpoint: str | None) -> Request:
    """The request of an endpoint; without one, of the endpoint whose field the body has."""
    from shardload_server.dialects.openai.requests import ChatBody, CompletionBody, EmbeddingBody
    from shardload_server.parsing import parse_body

    kinds: dict[str, type[ChatBody | CompletionBody | EmbeddingBody]] = {
        "chat": ChatBody,
        "completion": CompletionBody,
        "embedding": EmbeddingBody,
    }
    if endpoint is None:
        fields = parse_body(body, dict[str, msgspec.Raw])
        endpoint = next((name for name, field in ENDPOINT_FIELDS.items() if field in fields), None)
        if endpoint is None:
            raise RequestError("the request has neither messages, nor prompt, nor input: see --endpoint")
    if endpoint not in kinds:
        raise ConfigError(f"--endpoint is one of {', '.join(kinds)}, not {endpoint!r}")
    return parse_body(body, kinds[endpoint]).request()


def decide(config: Config, request: Request, headers: dict[str, str], key: str | None) -> Decision:
    """The router's decision for models that are all closed, with what the system holds of their files."""
    from shardload.library.catalog import Catalog
    from shardload.plan import features_of
    from shardload.routing import choose

    request.check()
    features = features_of(request, headers, key)
    return choose(features, Catalog.from_config(config), config.routes, _residency)


def _residency(entry: ModelEntry) -> Residency:
    from shardload.library.llama_opener import cached_bytes
    from shardload.routing import Residency

    return Residency("closed", max(0, entry.size_bytes - (cached_bytes(entry.paths) or 0)))
