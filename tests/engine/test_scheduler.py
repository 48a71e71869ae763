from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from shardload.engine.scheduler import compose, next_competitor


@dataclass(eq=False)
class Waiting:
    """A sequence as the scheduler sees it."""

    prompt_tokens: int
    solo: bool = False
    last_step: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0

    @property
    def pending_tokens(self) -> int:
        # Once all is computed it generates: there is always a next token.
        return max(1, self.prompt_tokens + self.generated_tokens - self.computed_tokens)


@dataclass(eq=False)
class Consumer:
    weight: float
    virtual_seconds: float = 0.0
    turns: int = 0


candidates = st.lists(
    st.builds(
        Waiting,
        prompt_tokens=st.integers(1, 300),
        solo=st.booleans(),
        last_step=st.integers(0, 5),
        generated_tokens=st.integers(0, 20),
    ),
    min_size=1,
    max_size=12,
)
budgets = st.integers(1, 64)


def batch(
    ready: list[Waiting], budget: int, chunk: int = 16, solo_chunk: int = 8
) -> list[tuple[Waiting, int]]:
    return compose(ready, budget_tokens=budget, chunk_tokens=chunk, solo_chunk_tokens=solo_chunk)


@given(candidates, budgets)
def test_a_batch_keeps_to_the_limits(ready: list[Waiting], budget: int) -> None:
    chosen = batch(ready, budget)
    assert chosen
    assert sum(count for _, count in chosen) <= budget
    assert len({id(candidate) for candidate, _ in chosen}) == len(chosen)
    assert all(1 <= count <= candidate.pending_tokens for candidate, count in chosen)
    if any(candidate.solo for candidate, _ in chosen):
        assert len(chosen) == 1
    if any(candidate.pending_tokens == 1 for candidate, _ in chosen):
        assert sum(count for candidate, count in chosen if candidate.pending_tokens > 1) <= 16


@given(candidates, budgets)
def test_nobody_waits_longer_than_there_are_candidates(ready: list[Waiting], budget: int) -> None:
    waited = dict.fromkeys(map(id, ready), 0)
    for step in range(6, 6 + 3 * len(ready)):
        chosen = batch(ready, budget)
        served = {id(candidate) for candidate, _ in chosen}
        for candidate, count in chosen:
            candidate.last_step = step
            candidate.computed_tokens += count
        for candidate in ready:
            waited[id(candidate)] = 0 if id(candidate) in served else waited[id(candidate)] + 1
        assert max(waited.values()) < len(ready)


@given(candidates, budgets)
def test_the_batches_of_a_solo_candidate_depend_on_itself_alone(ready: list[Waiting], budget: int) -> None:
    subject = Waiting(prompt_tokens=50, solo=True, last_step=0, generated_tokens=3)
    counts = []
    for step in range(6, 6 + 40 * (len(ready) + 1)):
        for candidate, count in batch([*ready, subject], budget):
            candidate.last_step = step
            candidate.computed_tokens += count
            if candidate is subject:
                counts.append(count)
    chunk = min(8, budget)
    prompt = [chunk] * (50 // chunk) + ([50 % chunk] if 50 % chunk else [])
    assert counts[: len(prompt)] == prompt[: len(counts)]
    assert set(counts[len(prompt) :]) <= {1}


def test_those_that_generate_come_together_and_prompts_fill_the_rest() -> None:
    generating = [Waiting(10, computed_tokens=9, last_step=3) for _ in range(3)]
    prompt = Waiting(500, last_step=3)
    assert batch([*generating, prompt], 64) == [*((each, 1) for each in generating), (prompt, 16)]
    assert batch([prompt], 64) == [(prompt, 64)]


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    long, short = Waiting(1000, last_step=2), Waiting(5, last_step=1)
    assert batch([long, short], 64) == [(short, 5), (long, 59)]


def test_nothing_ready_is_nothing_to_do() -> None:
    assert batch([], 64) == []


@given(
    st.lists(st.builds(Consumer, weight=st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=5),
    st.lists(st.floats(0.001, 0.1), min_size=5, max_size=5),
)
def test_compute_time_is_shared_by_weight(consumers: list[Consumer], step_seconds: list[float]) -> None:
    cost = dict(zip(map(id, consumers), step_seconds, strict=False))
    for _ in range(300):
        chosen = next_competitor(consumers)
        chosen.virtual_seconds += cost[id(chosen)] / chosen.weight
        chosen.turns += 1
    # However different their steps, no two are further apart than one step of either.
    virtual = [consumer.virtual_seconds for consumer in consumers]
    longest = max(cost[id(consumer)] / consumer.weight for consumer in consumers)
    assert max(virtual) - min(virtual) <= longest + 1e-9
