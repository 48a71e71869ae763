from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import FakeCatalog, make_entry

from shardload.config import RouteConfig, RouteMatch
from shardload.errors import ModelNotFound, RequestError
from shardload.library.entry import ModelEntry
from shardload.routing import CatalogView, Decision, RequestFeatures, Residency, choose


def features(model: str = "auto", **changes: Any) -> RequestFeatures:
    return RequestFeatures(**{"endpoint": "chat", "model": model, **changes})


def cold(entry: ModelEntry) -> Residency:
    return Residency("closed", entry.size_bytes)


def names(decision: Decision) -> list[str]:
    return [candidate.entry.name for candidate in decision.candidates]


@pytest.mark.parametrize(("asked", "answers"), [("large", "large"), ("tiny", "small"), ("pirate", "pirate")])
def test_a_name_an_alias_and_a_virtual_name(catalog: CatalogView, asked: str, answers: str) -> None:
    decision = choose(features(asked), catalog, (), cold)
    assert names(decision) == [answers]
    assert decision.rule == "name"


def test_an_unknown_name_tells_the_known_ones(catalog: CatalogView) -> None:
    with pytest.raises(ModelNotFound, match="'nobody' does not exist; available: small, large"):
        choose(features("nobody"), catalog, (), cold)


def test_auto_takes_the_cheapest_to_bring_in(catalog: CatalogView) -> None:
    decision = choose(features(), catalog, (), cold)
    assert names(decision) == ["small", "helper", "large"]
    assert decision.rule == "auto"
    assert decision.trace == (
        "auto: "
        + ", then ".join(
            f"{name} (closed, {size} bytes to read)"
            for name, size in (("small", 100), ("helper", 500), ("large", 900))
        ),
    )


def test_auto_prefers_what_is_in_memory(catalog: CatalogView) -> None:
    def residency(entry: ModelEntry) -> Residency:
        return Residency("open", 0) if entry.name == "large" else cold(entry)

    assert names(choose(features(), catalog, (), residency)) == ["large", "small", "helper"]


def test_auto_puts_models_that_failed_last(catalog: CatalogView) -> None:
    def residency(entry: ModelEntry) -> Residency:
        return Residency("failed", 0) if entry.name == "small" else cold(entry)

    assert names(choose(features(), catalog, (), residency))[-1] == "small"


def test_auto_takes_only_models_that_can(catalog: CatalogView) -> None:
    assert names(choose(features(tools=True), catalog, (), cold)) == ["helper"]
    assert names(choose(features(context_tokens=8000), catalog, (), cold)) == ["large"]
    assert names(choose(features(endpoint="embedding"), catalog, (), cold)) == ["vectors"]
    assert names(choose(features(endpoint="completion"), catalog, (), cold))[0] == "base"


def test_auto_gives_way_on_the_answer_before_the_prompt(catalog: CatalogView) -> None:
    wide = features(prompt_tokens=20000, context_tokens=99999)
    assert names(choose(wide, catalog, (), cold)) == ["large"]
    hopeless = features(prompt_tokens=99999, context_tokens=99999)
    assert names(choose(hopeless, catalog, (), cold)) == ["small", "helper", "large"]


def test_auto_with_nobody_able_says_what_was_asked_for(catalog: CatalogView) -> None:
    with pytest.raises(RequestError, match="can answer this chat request with tools and images: small"):
        choose(features(tools=True, images=True), catalog, (), cold)


def test_a_base_model_chats_where_there_is_no_other(catalog: FakeCatalog) -> None:
    catalog.found = [make_entry("base", capabilities=frozenset({"completion"}))]
    assert names(choose(features(), catalog, (), cold)) == ["base"]


def test_the_first_rule_that_applies_wins(catalog: CatalogView) -> None:
    routes = (
        RouteConfig(name="long", target="large", match=RouteMatch(min_prompt_tokens=1000)),
        RouteConfig(
            name="gold", target="helper", fallbacks=("small",), match=RouteMatch(headers={"x-tier": "gold"})
        ),
        RouteConfig(name="rest", target="small"),
    )
    assert choose(features(prompt_tokens=2000), catalog, routes, cold).rule == "long"
    gold = choose(features(headers={"x-tier": "gold"}), catalog, routes, cold)
    assert (gold.rule, names(gold)) == ("gold", ["helper", "small"])
    rest = choose(features(), catalog, routes, cold)
    assert rest.rule == "rest"
    assert rest.trace == (
        "long: no, about 0 prompt tokens, fewer than 1000",
        "gold: no, header x-tier is not 'gold'",
        "rest: yes, small (target of rest)",
    )


def test_an_explicit_name_is_left_alone_by_rules_for_auto(catalog: CatalogView) -> None:
    routes = (RouteConfig(name="rest", target="large"),)
    decision = choose(features("small"), catalog, routes, cold)
    assert (decision.rule, names(decision)) == ("name", ["small"])
    assert decision.trace[0] == "rest: no, model is small, not auto"


@pytest.mark.parametrize("asked", ["small", "tiny"])
def test_a_rule_may_take_a_name_over(catalog: CatalogView, asked: str) -> None:
    routes = (RouteConfig(name="move", target="large", match=RouteMatch(model="small")),)
    assert names(choose(features(asked), catalog, routes, cold)) == ["large"]
    assert names(choose(features("helper"), catalog, routes, cold)) == ["helper"]


def test_a_rule_may_name_a_model_that_is_not_there(catalog: CatalogView) -> None:
    routes = (RouteConfig(name="foreign", target="large", match=RouteMatch(model="gpt-4o")),)
    assert names(choose(features("gpt-4o"), catalog, routes, cold)) == ["large"]


def test_a_rule_for_every_model(catalog: CatalogView) -> None:
    routes = (RouteConfig(name="all", target="large", match=RouteMatch(model="*")),)
    assert names(choose(features("small"), catalog, routes, cold)) == ["large"]
    assert names(choose(features("auto"), catalog, routes, cold)) == ["large"]


def test_missing_and_unable_targets_are_passed_over(catalog: CatalogView) -> None:
    routes = (
        RouteConfig(name="gone", target="nobody", fallbacks=("vectors",)),
        RouteConfig(name="next", target="nobody", fallbacks=("large",)),
    )
    decision = choose(features(), catalog, routes, cold)
    assert (decision.rule, names(decision)) == ("next", ["large"])
    assert decision.trace[0].startswith("gone: nobody is not there (the model 'nobody' does not exist")
    assert decision.trace[1:3] == (
        "gone: vectors makes embeddings only",
        "gone: matches, but none of its models can answer",
    )


def test_auto_as_a_fallback_takes_anyone_able(catalog: CatalogView) -> None:
    routes = (RouteConfig(name="first", target="large", fallbacks=("auto",)),)
    assert names(choose(features(), catalog, routes, cold)) == ["large", "small", "helper"]


def test_a_model_that_ranks_makes_no_vectors(catalog: FakeCatalog) -> None:
    catalog.found.append(make_entry("judge", size_bytes=1, kind="embed", capabilities=frozenset()))
    wanted = features(endpoint="embedding")
    assert names(choose(wanted, catalog, (), cold)) == ["vectors"]
    assert names(choose(features("small", endpoint="embedding"), catalog, (), cold)) == ["small"]
    with pytest.raises(RequestError, match="'judge' ranks texts and makes no embeddings"):
        choose(features("judge", endpoint="embedding"), catalog, (), cold)


@pytest.mark.parametrize(
    ("request_features", "words"),
    [
        (features("vectors"), "the model 'vectors' makes embeddings only"),
        (features("small", tools=True), "the model 'small' takes no tools"),
        (features("small", images=True), "the model 'small' takes no images"),
    ],
)
def test_a_named_model_that_cannot_is_an_error(
    catalog: CatalogView, request_features: RequestFeatures, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        choose(request_features, catalog, (), cold)


@given(
    asked=st.sampled_from(["auto", "small", "tiny", "large", "pirate", "vectors", "nobody"]),
    endpoint=st.sampled_from(["chat", "completion", "embedding"]),
    targets=st.lists(st.sampled_from(["small", "large", "nobody", "vectors", "auto"]), max_size=3),
    model=st.sampled_from([None, "auto", "small", "*"]),
    tools=st.booleans(),
    tokens=st.integers(0, 10**5),
)
def test_every_choice_is_of_the_catalog_and_explained(
    make_catalog: Any,
    asked: str,
    endpoint: str,
    targets: list[str],
    model: str | None,
    tools: bool,
    tokens: int,
) -> None:
    catalog = make_catalog()
    routes = tuple(
        RouteConfig(name=f"rule{index}", target=target, match=RouteMatch(model=model))
        for index, target in enumerate(targets)
    )
    request = features(asked, endpoint=endpoint, tools=tools, prompt_tokens=tokens, context_tokens=tokens)
    try:
        decision = choose(request, catalog, routes, cold)
    except (ModelNotFound, RequestError):
        return
    assert decision == choose(request, catalog, routes, cold)
    chosen = names(decision)
    assert chosen
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(catalog.names())
    assert decision.rule in {"auto", "name", *(route.name for route in routes)}
    assert decision.trace[-1].startswith(f"{decision.rule}: ")
    if asked not in ("auto", "small", "tiny") and model != "*":
        assert decision.rule == "name"
