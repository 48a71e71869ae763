from __future__ import annotations

import pytest

from shardload.engine.pace import CHUNK_TOKENS, LEAST_LONELY_TOKENS, Pace


def test_before_anything_is_known_chunks_are_as_long_as_they_may() -> None:
    pace = Pace()
    assert pace.generation_seconds == 0
    assert pace.shared_chunk_tokens() == CHUNK_TOKENS[-1]
    assert pace.lonely_chunk_tokens(512) == 512


def test_chunks_are_as_long_as_their_time() -> None:
    pace = Pace()
    pace.note(100, 1, 1.0, 1)
    assert pace.shared_chunk_tokens() == 30
    assert pace.lonely_chunk_tokens(512) == 200
    pace.note(100, 1, 1000.0, 1)
    assert pace.shared_chunk_tokens() == CHUNK_TOKENS[0]
    assert pace.lonely_chunk_tokens(512) == LEAST_LONELY_TOKENS


def test_a_step_that_had_to_wait_is_forgotten_with_the_next() -> None:
    pace = Pace()
    pace.note(100, 1, 100.0, 1)
    pace.note(100, 1, 0.5, 1)
    assert pace.lonely_chunk_tokens(4096) == 400


def test_a_step_on_half_of_the_cores_counts_as_on_all_of_them() -> None:
    whole, half = Pace(), Pace()
    whole.note(4, 4, 0.02, 1)
    half.note(4, 4, 0.04, 2)
    assert whole.generation_seconds == pytest.approx(half.generation_seconds)


def test_an_average_follows_the_measurements() -> None:
    pace = Pace()
    for _ in range(40):
        pace.note(1, 1, 0.01, 1)
    for _ in range(40):
        pace.note(1, 1, 0.03, 1)
    assert pace.generation_seconds == pytest.approx(0.03, rel=1e-3)
