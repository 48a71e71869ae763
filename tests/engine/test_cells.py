"""What is kept in the KV cache, shared, and given up."""

from __future__ import annotations

import pytest
from fakes import FakeRunner
from turned_lane import TurnedLane

from shardload.errors import PromptTooLong


def test_a_conversation_goes_on_from_its_cache(bench: TurnedLane) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner)
    first = bench.submit(engine, list(range(50)), max_tokens=5)
    bench.run()
    turn = [*range(50), *first.tokens, 60, 61]
    second = bench.submit(engine, turn, max_tokens=5)
    bench.run()
    assert second.tokens == runner.expected(turn, 5)
    assert second.finish.usage.cached_tokens >= 54


def test_parallel_requests_compute_a_common_prompt_once(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=512, slots=4)
    engine = bench.attach(runner)
    system = list(range(100))
    prompts = [[*system, 200 + number] for number in range(4)]
    readers = [bench.submit(engine, prompt, max_tokens=8) for prompt in prompts]
    bench.run()
    for prompt, reader in zip(prompts, readers, strict=True):
        assert reader.tokens == runner.expected(prompt, 8)
    assert [reader.finish.usage.cached_tokens for reader in readers] == [0, 100, 100, 100]
    assert sum(len(run.tokens) for runs in runner.steps for run in runs) < 101 + 4 * 9
    assert runner.cells_used < 101 + 4 * 9


def test_others_pass_a_sequence_that_waits_for_a_prefix(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=512, slots=3, batch_tokens=32)
    engine = bench.attach(runner)
    source = bench.submit(engine, list(range(100)), max_tokens=3)
    waiting = bench.submit(engine, [*range(100), 7], max_tokens=3)
    other = bench.submit(engine, [9, 9, 9], max_tokens=3)
    bench.lane.turn()
    assert (engine.stats.running, engine.stats.queued) == (2, 1)
    bench.run()
    assert waiting.finish.usage.cached_tokens > 100 - 32
    assert source.tokens == runner.expected(list(range(100)), 3)
    assert waiting.tokens == runner.expected([*range(100), 7], 3)
    assert other.tokens == runner.expected([9, 9, 9], 3)


def test_a_recurrent_model_shares_nothing_in_part_and_is_right(bench: TurnedLane) -> None:
    runner = FakeRunner(recurrent=True, slots=2)
    engine = bench.attach(runner)
    first = bench.submit(engine, list(range(40)), max_tokens=20)
    bench.run(until=lambda: len(first.deltas) >= 3)
    second = bench.submit(engine, [*range(40), 99], max_tokens=6)
    bench.run()
    torn = bench.submit(engine, [*range(20), 98], max_tokens=6)
    bench.run()
    continued = [*range(40), *first.tokens, 5, 6]
    third = bench.submit(engine, continued, max_tokens=6)
    bench.run()
    assert first.tokens == runner.expected(list(range(40)), 20)
    assert second.tokens == runner.expected([*range(40), 99], 6)
    assert torn.tokens == runner.expected([*range(20), 98], 6)
    assert third.tokens == runner.expected(continued, 6)


def test_slots_with_separate_caches_share_nothing(bench: TurnedLane) -> None:
    class Separate(FakeRunner):
        def share(self, source: int, target: int, tokens: int) -> None:
            raise ValueError("separate caches")

    runner = Separate(slots=2)
    engine = bench.attach(runner)
    readers = [bench.submit(engine, [*range(60), number], max_tokens=4) for number in range(3)]
    bench.run()
    for number, reader in enumerate(readers):
        assert reader.tokens == runner.expected([*range(60), number], 4)


def test_without_cells_idle_caches_go_first(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=64, slots=4, batch_tokens=32)
    engine = bench.attach(runner)
    for start in (0, 100, 200):
        bench.submit(engine, list(range(start, start + 18)), max_tokens=2)
        bench.run()
    reader = bench.submit(engine, [7] * 40, max_tokens=6)
    bench.run()
    assert reader.tokens == runner.expected([7] * 40, 6)
    assert engine.stats.paused_total == 0


def test_without_cells_the_youngest_pauses_and_loses_nothing(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=100, slots=3, batch_tokens=32)
    engine = bench.attach(runner)
    prompts = [[number] * 10 for number in (1, 2, 3)]
    readers = [bench.submit(engine, prompt, max_tokens=60, ignore_eos=True) for prompt in prompts]
    bench.run()
    for prompt, reader in zip(prompts, readers, strict=True):
        expected = runner.expected(prompt, 60)
        assert reader.tokens[: len(expected)] == expected
        assert (len(reader.tokens), reader.finish.reason) == (60, "length")
    assert 1 <= engine.stats.paused_total <= 6
    assert readers[0].ended.is_set()


def test_admission_leaves_room_for_those_that_run(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=100, slots=4)
    engine = bench.attach(runner)
    readers = [bench.submit(engine, [number] * 60, max_tokens=10) for number in (1, 2)]
    bench.lane.turn()
    assert (engine.stats.running, engine.stats.queued) == (1, 1)
    bench.run()
    assert [len(reader.tokens) for reader in readers] == [
        len(runner.expected([number] * 60, 10)) for number in (1, 2)
    ]
    assert engine.stats.paused_total == 0


def test_a_slot_smaller_than_promised_ends_with_length(bench: TurnedLane) -> None:
    class Small(FakeRunner):
        cells = 20

        def decode(self, runs):  # type: ignore[no-untyped-def]
            return self.cells_used + sum(len(run.tokens) for run in runs) <= 20 and super().decode(runs)

    runner = Small(ctx_tokens=100)
    engine = bench.attach(runner)
    reader = bench.submit(engine, [1] * 10, ignore_eos=True)
    bench.run()
    assert (len(reader.tokens), reader.finish.reason) == (11, "length")
    long = bench.submit(engine, [1] * 30)
    bench.run()
    with pytest.raises(PromptTooLong):
        _ = long.finish


def test_cells_that_one_has_left_to_another_are_counted(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=200, slots=3, batch_tokens=48)
    engine = bench.attach(runner)
    common = [number % 11 for number in range(150)]
    first = bench.submit(engine, common[:120], max_tokens=6, ignore_eos=True)
    bench.run(until=first.began.is_set)
    second = bench.submit(engine, common, max_tokens=12, ignore_eos=True)
    bench.run(until=first.ended.is_set)
    third = bench.submit(engine, [5] * 90, max_tokens=6, ignore_eos=True)
    bench.run()
    assert second.tokens == runner.expected(common, 12)
    assert third.tokens == runner.expected([5] * 90, 6)
    assert engine.stats.paused_total == 0


def test_those_who_share_count_what_they_share_once(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=256, slots=4, batch_tokens=64)
    engine = bench.attach(runner)
    system = list(range(150))
    first = bench.submit(engine, system, max_tokens=4, ignore_eos=True)
    others = [bench.submit(engine, [*system, 200 + number], max_tokens=12) for number in range(3)]
    bench.run(until=first.ended.is_set)
    bench.run(until=lambda: engine.stats.running == 3)
    # The first has left; its cells are there once for all of them.
    assert engine.stats.running == 3
    bench.run()
    for number, reader in enumerate(others):
        assert reader.tokens == runner.expected([*system, 200 + number], 12)
