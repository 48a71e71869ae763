from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.config import Config, MemoryConfig
from shardload.library import budget
from shardload.library.budget import Budget, budget_bytes


def test_configured() -> None:
    assert budget_bytes(Config(memory=MemoryConfig(budget=123))) == 123


def test_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda: 1000)
    assert budget_bytes(Config()) == 800


def test_pressure_takes_some_for_a_while() -> None:
    found = Budget(1000, recovery_seconds=10)
    assert (found.bytes_at(5), found.is_lowered(5), found.next_change(5)) == (1000, False, math.inf)
    found.lower(5, 600)
    assert [found.bytes_at(at) for at in (5, 14.9, 15, 25, 35, 45)] == [600, 600, 800, 900, 950, 1000]
    assert [found.next_change(at) for at in (5, 15, 44, 45)] == [15, 25, 45, math.inf]
    found.lower(20, 500)
    assert (found.bytes_at(20), found.bytes_at(30)) == (500, 750)
    found.lower(21, 900)
    assert found.bytes_at(21) == 500
    found.lower(22, -100)
    assert found.bytes_at(22) == 0
    found.configured = 3000
    assert (found.bytes_at(22), found.configured_bytes) == (2000, 3000)


def test_what_was_available_may_be_asked_for_each_time() -> None:
    assert Budget(lambda: 7).bytes_at(0.0) == 7


@given(st.floats(0, 1e6), st.integers(0, 1000), st.floats(0.1, 100))
def test_it_comes_back_in_steps_that_are_announced(at: float, to_bytes: int, seconds: float) -> None:
    found = Budget(1000, recovery_seconds=seconds)
    found.lower(at, to_bytes)
    now, changes = at, 0
    while found.is_lowered(now):
        following = found.next_change(now)
        assert following > now
        assert found.bytes_at(following) >= found.bytes_at(now)
        now, changes = following, changes + 1
        assert changes <= 5
    assert found.bytes_at(now) == 1000
