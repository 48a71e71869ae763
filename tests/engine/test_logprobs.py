from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shardload.engine.logprobs import RawDistribution, likeliest

rows = npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=32))


@given(rows, st.integers(0, 70))
def test_likeliest_is_the_head_of_the_sorted_row(logits: np.ndarray, count: int) -> None:
    values = [float(logits[token]) for token in likeliest(logits, count)]
    assert values == sorted(map(float, logits), reverse=True)[:count]
    assert len(set(likeliest(logits, count))) == len(values)


@given(rows)
def test_log_probabilities_are_a_log_softmax(logits: np.ndarray) -> None:
    total = math.fsum(math.exp(value) for value in logits.astype(float))
    entry = RawDistribution(logits, len(logits)).of(0, lambda token: b"x")
    assert entry.logprob == pytest.approx(float(logits[0]) - math.log(total), abs=1e-4)
    assert sum(math.exp(logprob) for _, _, logprob in entry.top) == pytest.approx(1, abs=1e-4)


def test_a_part_of_a_character_is_shown_as_such() -> None:
    entry = RawDistribution(np.zeros(2, np.float32), 1).of(1, lambda token: b"\xe2\x82")
    assert (entry.token, entry.raw, entry.text) == (1, b"\xe2\x82", "�")


def test_the_row_may_change_after_it_was_read() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    distribution = RawDistribution(logits, 1)
    logits[:] = -9
    assert distribution.of(1, lambda token: b"").logprob == pytest.approx(-math.log(1 + math.exp(-1)))
