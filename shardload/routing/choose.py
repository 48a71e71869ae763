"""The router's decision: which models may answer a request, in which order, and why. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardload.config import RouteConfig
from shardload.errors import ModelNotFound, ModelUnavailable, RequestError, ShardloadError
from shardload.library.entry import ModelEntry
from shardload.library.status import ModelState
from shardload.routing.features import RequestFeatures
from shardload.routing.rules import ANY_MODEL, failed_condition

AUTO = "auto"
BY_NAME = "name"

_STATE_ORDER: tuple[ModelState, ...] = ("open", "parked", "opening", "streaming", "closed", "failed")


@dataclass(frozen=True, slots=True)
class Residency:
    """How far a model is from answering: ``missing_bytes`` must be read from disk first."""

    state: ModelState
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer, and why it stands where it stands."""

    entry: ModelEntry
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Candidates in the order to try, the rule that named them, and what every rule said on the way."""

    candidates: tuple[Candidate, ...]
    rule: str
    trace: tuple[str, ...]


class CatalogView(Protocol):
    """What the router needs of the catalog; ``get`` resolves aliases and raises ModelNotFound."""

    def get(self, name: str) -> ModelEntry: ...
    def entries(self) -> Iterable[ModelEntry]: ...
    def names(self) -> Iterable[str]: ...


ResidencyOf = Callable[[ModelEntry], Residency]


def choose(
    features: RequestFeatures,
    catalog: CatalogView,
    routes: Sequence[RouteConfig],
    residency: ResidencyOf,
) -> Decision:
    """Decide who answers: the first rule that applies, else the model by name, else the best for ``auto``.

    Raises ModelNotFound, OpenFailed for a file known to be no model, and RequestError where nobody named can
    do what is asked. Opens and changes nothing.
    """
    trace: list[str] = []
    for route in routes:
        failure = _wrong_model(route, features, catalog) or failed_condition(route.match, features)
        if failure is not None:
            trace.append(f"{route.name}: no, {failure}")
            continue
        candidates = _targets(route, features, catalog, residency, trace)
        if candidates:
            trace.append(f"{route.name}: yes, {_listing(candidates)}")
            return Decision(candidates, route.name, tuple(trace))
        trace.append(f"{route.name}: matches, but none of its models can answer")
    if features.model == AUTO:
        candidates = _automatic(features, catalog, residency)
        if not candidates:
            raise _nobody(features, catalog)
        trace.append(f"{AUTO}: {_listing(candidates)}")
        return Decision(candidates, AUTO, tuple(trace))
    entry = catalog.get(features.model)
    lack = _lack(entry, features)
    if lack is not None:
        raise RequestError(f"the model {entry.name!r} {lack}", param="model")
    trace.append(f"{BY_NAME}: {features.model} is {entry.name}")
    return Decision((Candidate(entry, "asked for by name"),), BY_NAME, tuple(trace))


def _wrong_model(route: RouteConfig, features: RequestFeatures, catalog: CatalogView) -> str | None:
    wanted = route.match.model or AUTO
    if wanted in (ANY_MODEL, features.model):
        return None
    if AUTO not in (wanted, features.model):
        try:
            if catalog.get(wanted).name == catalog.get(features.model).name:
                return None
        except (ModelNotFound, ModelUnavailable):
            pass
    return f"model is {features.model}, not {wanted}"


def _targets(
    route: RouteConfig,
    features: RequestFeatures,
    catalog: CatalogView,
    residency: ResidencyOf,
    trace: list[str],
) -> tuple[Candidate, ...]:
    found: dict[str, Candidate] = {}
    for position, name in enumerate((route.target, *route.fallbacks)):
        role = f"target of {route.name}" if position == 0 else f"fallback {position} of {route.name}"
        try:
            entries = (
                [each.entry for each in _automatic(features, catalog, residency)]
                if name == AUTO
                else [catalog.get(name)]
            )
        except (ModelNotFound, ModelUnavailable) as error:
            trace.append(f"{route.name}: {name} is not there ({error})")
            continue
        for entry in entries:
            lack = _lack(entry, features)
            if lack is None:
                found.setdefault(entry.name, Candidate(entry, role))
            else:
                trace.append(f"{route.name}: {entry.name} {lack}")
    return tuple(found.values())


def _lack(entry: ModelEntry, features: RequestFeatures) -> str | None:
    """What a model cannot do that the request needs; None when it can answer."""
    if features.endpoint == "embedding":
        # Any language model can be asked for vectors; one that ranks has scores only.
        makes_none = entry.kind == "embed" and "embedding" not in entry.capabilities
        return "ranks texts and makes no embeddings" if makes_none else None
    if entry.kind == "embed":
        return "makes embeddings only"
    if features.tools and "tools" not in entry.capabilities:
        return "takes no tools"
    if features.images and "images" not in entry.capabilities:
        return "takes no images"
    return None


def _automatic(
    features: RequestFeatures, catalog: CatalogView, residency: ResidencyOf
) -> tuple[Candidate, ...]:
    """Find the capable models, nearest to memory first; virtual ones stay out: who wants them names them."""
    able = [entry for entry in catalog.entries() if entry.base is None and _lack(entry, features) is None]
    if features.endpoint == "embedding":
        able = [entry for entry in able if entry.kind == "embed"]
    if features.endpoint == "chat":
        able = [entry for entry in able if "chat" in entry.capabilities] or able
    for wanted_tokens in (features.context_tokens, features.prompt_tokens):
        roomy = [entry for entry in able if entry.ctx_tokens >= wanted_tokens]
        if roomy:
            able = roomy
            break
    ranked = sorted(
        ((_rank(entry, residency(entry)), entry) for entry in able), key=lambda pair: (pair[0], pair[1].name)
    )
    return tuple(Candidate(entry, _words(rank)) for rank, entry in ranked)


def _rank(entry: ModelEntry, residency: Residency) -> tuple[int, int]:
    return (_STATE_ORDER.index(residency.state), residency.missing_bytes)


def _nobody(features: RequestFeatures, catalog: CatalogView) -> ShardloadError:
    names = tuple(catalog.names())
    if not names:
        return ModelNotFound(AUTO, names)
    needs = [name for name in ("tools", "images") if getattr(features, name)]
    request = f"{features.endpoint} request" + (f" with {' and '.join(needs)}" if needs else "")
    return RequestError(
        f"none of the models here can answer this {request}: {', '.join(names)}", param="model"
    )


def _words(rank: tuple[int, int]) -> str:
    state, missing_bytes = _STATE_ORDER[rank[0]], rank[1]
    return f"{state}, {missing_bytes} bytes to read"


def _listing(candidates: Sequence[Candidate]) -> str:
    return ", then ".join(f"{each.entry.name} ({each.reason})" for each in candidates)
