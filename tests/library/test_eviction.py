from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import AllPinned, InsufficientMemory
from shardload.library.eviction import Candidate, check_fits, freed_bytes, plan


def candidate(
    key: str,
    *,
    last_used: float = 0.0,
    private: int = 10,
    weights: int = 90,
    on: str | None = None,
    holders: int = 1,
    stays_until: float = -math.inf,
    reopen_seconds: float = 0.0,
) -> Candidate:
    return Candidate(key, on or key, private, weights, holders, last_used, stays_until, reopen_seconds)


def keys(*candidates: Candidate, free: int, now: float = 0.0) -> list[object]:
    return [victim.key for victim in plan(free, candidates, now).victims]


def test_least_recently_used_first() -> None:
    a, b, c = (candidate(key, last_used=at) for key, at in (("a", 3), ("b", 1), ("c", 2)))
    assert keys(a, b, c, free=100) == ["b"]
    assert keys(a, b, c, free=101) == ["b", "c"]
    assert keys(a, b, c, free=300) == ["b", "c", "a"]
    assert keys(a, b, c, free=301) == []


def test_small_ones_are_spared_when_a_large_one_must_go() -> None:
    small = candidate("small", last_used=1, weights=5, private=0)
    large = candidate("large", last_used=2, weights=1000)
    assert keys(small, large, free=5) == ["small"]
    assert keys(small, large, free=50) == ["large"]


def test_quickest_to_bring_back_among_equals() -> None:
    slow, fast = candidate("slow", reopen_seconds=5), candidate("fast", reopen_seconds=1)
    assert keys(slow, fast, free=1) == ["fast"]


def test_weights_go_with_their_last_context() -> None:
    one = candidate("one", on="w", holders=2, last_used=1)
    two = candidate("two", on="w", holders=2, last_used=2)
    assert keys(one, two, free=10) == ["one"]
    assert keys(one, two, free=20) == ["one", "two"]
    assert keys(one, two, free=110) == ["one", "two"]
    assert keys(one, free=11) == []
    assert freed_bytes([one, two]) == 110


def test_just_opened_ones_stay() -> None:
    new, old = candidate("new", last_used=1, stays_until=10), candidate("old", last_used=2)
    assert keys(new, old, free=100) == ["old"]
    late = plan(200, [new, old], 5.0)
    assert (late.victims, late.retry_at) == ((), 10)
    assert keys(new, old, free=200, now=10.0) == ["new", "old"]
    assert plan(201, [new, old], 5.0).retry_at is None


def test_check_fits() -> None:
    check_fits("a", 100, 100, {})
    check_fits("a", 60, 100, {"b": 40})
    with pytest.raises(InsufficientMemory, match="needs 101 B"):
        check_fits("a", 101, 100, {"b": 40})
    with pytest.raises(AllPinned, match="pinned models hold: b, c"):
        check_fits("a", 60, 100, {"c": 20, "b": 21})


CANDIDATES = st.lists(
    st.tuples(
        st.sampled_from("uvwxyz"),
        st.integers(0, 50),
        st.integers(0, 5),
        st.sampled_from([-1.0, 1.0]),
    ),
    max_size=8,
)


@given(CANDIDATES, st.integers(1, 400), st.integers(0, 1))
def test_plans_are_enough_and_minimal(
    rows: list[tuple[str, int, int, float]], free: int, others: int
) -> None:
    sizes = {name: 10 * index for index, name in enumerate("uvwxyz", start=1)}
    counts = {name: sum(1 for row in rows if row[0] == name) + others for name in sizes}
    candidates = [
        Candidate(index, name, private, sizes[name], counts[name], used, stays)
        for index, (name, private, used, stays) in enumerate(rows)
    ]
    found = plan(free, candidates, 0.0)
    may_leave = [each for each in candidates if each.stays_until <= 0]
    assert set(found.victims) <= set(may_leave)
    if freed_bytes(may_leave) >= free and may_leave:
        assert freed_bytes(found.victims) >= free
        for rest in itertools.combinations(found.victims, max(len(found.victims) - 1, 0)):
            assert freed_bytes(rest) < free
    else:
        assert not found.victims
    if found.retry_at is not None:
        assert freed_bytes(candidates) >= free
