from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.routing.features import estimate_tokens


@given(st.text(), st.text())
def test_an_estimate_grows_with_the_text(first: str, second: str) -> None:
    assert max(estimate_tokens(first), estimate_tokens(second)) <= estimate_tokens(first + second)
    assert estimate_tokens(first + second) <= estimate_tokens(first) + estimate_tokens(second)


def test_an_estimate_counts_bytes_not_characters() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("word") == 1
    assert estimate_tokens("日本語日本語") == 5
    assert estimate_tokens("\ud800") == 1
