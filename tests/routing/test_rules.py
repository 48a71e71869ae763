from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.config import RouteMatch
from shardload.routing.features import RequestFeatures
from shardload.routing.rules import failed_condition

FEATURES = RequestFeatures(
    endpoint="chat",
    model="auto",
    prompt_tokens=100,
    context_tokens=600,
    tools=True,
    headers={"x-tier": "gold"},
    key="secret",
)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (RouteMatch(endpoint="embedding"), "endpoint is chat, not embedding"),
        (RouteMatch(min_prompt_tokens=101), "about 100 prompt tokens, fewer than 101"),
        (RouteMatch(max_prompt_tokens=99), "about 100 prompt tokens, more than 99"),
        (RouteMatch(min_context_tokens=601), "about 600 context tokens, fewer than 601"),
        (RouteMatch(tools=False), "tools is true, not false"),
        (RouteMatch(json_schema=True), "json_schema is false, not true"),
        (RouteMatch(images=True), "images is false, not true"),
        (RouteMatch(headers={"X-Tier": "silver"}), "header X-Tier is not 'silver'"),
        (RouteMatch(headers={"x-other": "gold"}), "header x-other is not 'gold'"),
        (RouteMatch(key="other"), "another key, or none"),
    ],
)
def test_each_condition_says_why_it_fails(match: RouteMatch, words: str) -> None:
    assert failed_condition(match, FEATURES) == words


def test_all_conditions_hold() -> None:
    match = RouteMatch(
        endpoint="chat",
        min_prompt_tokens=100,
        max_prompt_tokens=100,
        min_context_tokens=600,
        tools=True,
        json_schema=False,
        images=False,
        headers={"X-Tier": "gold"},
        key="secret",
    )
    assert failed_condition(match, FEATURES) is None


def test_a_key_is_never_repeated() -> None:
    assert "hidden" not in str(failed_condition(RouteMatch(key="hidden"), FEATURES))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_bounds_are_inclusive(low: int, high: int, prompt_tokens: int) -> None:
    match = RouteMatch(min_prompt_tokens=low, max_prompt_tokens=high)
    features = RequestFeatures(endpoint="chat", model="auto", prompt_tokens=prompt_tokens)
    assert (failed_condition(match, features) is None) == (low <= prompt_tokens <= high)
