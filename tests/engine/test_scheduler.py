from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from shardload.engine.pace import Pace
from shardload.engine.scheduler import compose, next_turn


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
    only_generates: bool = False
    pace: Pace = field(default_factory=Pace)


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
        (chosen,) = next_turn(consumers)
        chosen.virtual_seconds += cost[id(chosen)] / chosen.weight
        chosen.turns += 1
    # However different their steps, no two are further apart than one step of either.
    virtual = [consumer.virtual_seconds for consumer in consumers]
    longest = max(cost[id(consumer)] / consumer.weight for consumer in consumers)
    assert max(virtual) - min(virtual) <= longest + 1e-9


def generating(seconds: float, **changes: object) -> Consumer:
    consumer = Consumer(**{"weight": 1.0, "only_generates": True, **changes})  # type: ignore[arg-type]
    consumer.pace.note(1, 1, seconds, 1)
    return consumer


def test_two_that_only_generate_share_a_turn() -> None:
    first, second, third = generating(0.03), generating(0.03), generating(0.03, virtual_seconds=0.02)
    assert next_turn([third, first, second]) == [first, second]


def test_a_prompt_a_short_step_and_a_much_longer_one_have_their_turns_alone() -> None:
    first = generating(0.03)
    assert next_turn([first, generating(0.03, only_generates=False)]) == [first]
    assert next_turn([first, generating(0.09)]) == [first]
    assert next_turn([first, Consumer(1.0, only_generates=True)]) == [first]
    short = generating(0.001)
    assert next_turn([short, generating(0.001)]) == [short]
    prompt = Consumer(1.0)
    assert next_turn([prompt, first]) == [prompt]


def test_who_has_had_more_than_its_share_waits_for_the_others() -> None:
    first = generating(0.03)
    assert next_turn([first, generating(0.03, virtual_seconds=0.04)]) == [first]


@given(st.lists(st.tuples(st.floats(0.5, 4.0), st.floats(0.01, 0.1), st.booleans()), min_size=2, max_size=6))
def test_shared_turns_keep_to_the_shares(kinds: list[tuple[float, float, bool]]) -> None:
    consumers = [
        generating(seconds, weight=weight, only_generates=generates) for weight, seconds, generates in kinds
    ]
    for _ in range(300):
        turn = next_turn(consumers)
        for consumer in turn:
            consumer.virtual_seconds += consumer.pace.generation_seconds / consumer.weight
    virtual = [consumer.virtual_seconds for consumer in consumers]
    longest = max(consumer.pace.generation_seconds for consumer in consumers)
    lightest = min(consumer.weight for consumer in consumers)
    assert max(virtual) - min(virtual) <= longest + longest / lightest + 1e-9
