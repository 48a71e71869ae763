"""Seeded sequences: the same text, whatever else is running."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import FakeRunner
from turned_lane import TurnedLane

from shardload.engine import Run, SamplingParams, workload
from shardload.shards.layouts import LayoutTable, Speeds


def shapes(runner: FakeRunner) -> list[list[tuple[int, int]]]:
    return [[(run.start, len(run.tokens)) for run in runs] for runs in runner.steps]


def test_a_seeded_text_does_not_depend_on_what_else_runs(bench: TurnedLane) -> None:
    seeded = {"sampling": SamplingParams(temperature=1.5, seed=7), "max_tokens": 20, "ignore_eos": True}
    prompt = list(range(90))
    alone_runner = FakeRunner(batch_tokens=32)
    alone = bench.submit(bench.attach(alone_runner), prompt, **seeded)
    bench.run()
    runner = FakeRunner(batch_tokens=32)
    engine = bench.attach(runner)
    others = [bench.submit(engine, prompt[: 20 + number], max_tokens=30) for number in range(2)]
    bench.run(until=others[0].began.is_set)
    among = bench.submit(engine, prompt, **seeded)
    later = bench.submit(engine, prompt[:5], max_tokens=30)
    bench.run(until=among.began.is_set)
    assert all(reader.ended.is_set() for reader in others)
    # Nobody's cells are before or between its own, so that they are in the same places each time.
    assert runner.cells_used == len(runner.content(runner.steps[-1][0].slot))
    assert not later.began.is_set()
    began = len(runner.steps) - 3
    bench.run()
    assert among.tokens == alone.tokens
    assert among.finish.usage.cached_tokens == 0
    assert shapes(runner)[began:][: len(alone_runner.steps)] == shapes(alone_runner)
    assert later.tokens == runner.expected(prompt[:5], 30)


def test_a_seeded_prompt_has_the_same_chunks_however_slow_it_is(
    bench: TurnedLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(workload, "perf_counter", lambda: now[0])
    runner = FakeRunner(ctx_tokens=1024, batch_tokens=512)

    def take_time(runs: Sequence[Run]) -> None:
        now[0] += 0.1 * sum(len(run.tokens) for run in runs)

    runner.on_decode = take_time
    engine = bench.attach(runner)
    for _ in range(2):
        bench.submit(engine, [1] * 150, sampling=SamplingParams(seed=1), max_tokens=1)
        bench.run()
    assert shapes(runner) == [[(0, 64)], [(64, 64)], [(128, 22)]] * 2


def test_a_seeded_text_is_never_computed_in_the_order_that_leaves_when_memory_is_short(
    bench: TurnedLane,
) -> None:
    table = LayoutTable({"Q4_K": Speeds({1: 1000, 512: 1000}, {1: 1, 512: 1})})
    runner = FakeRunner(ctx_tokens=1024, batch_tokens=512)
    engine = bench.attach(runner)
    bench.submit(engine, [1] * 400, sampling=SamplingParams(seed=1), max_tokens=3, ignore_eos=True)
    bench.run()
    sizes = {sum(len(run.tokens) for run in runs) for runs in runner.steps}
    assert {table.choose({"Q4_K": 1}, tokens) for tokens in sizes} == {"packed"}
    assert table.choose({"Q4_K": 1}, 400) == "file"


def test_a_paused_seeded_sequence_is_computed_again_in_the_same_shapes(bench: TurnedLane) -> None:
    seeded = {"sampling": SamplingParams(temperature=1.0, seed=1), "max_tokens": 60, "ignore_eos": True}
    alone_runner = FakeRunner(batch_tokens=16)
    alone = bench.submit(bench.attach(alone_runner), [1] * 20, **seeded)
    bench.run()
    runner = FakeRunner(batch_tokens=16)
    engine = bench.attach(runner)
    slow = bench.submit(engine, [1] * 20, slow=True, **seeded)
    bench.run()
    other = bench.submit(engine, [2] * 5, max_tokens=2)
    bench.run()
    assert (len(slow.deltas), other.ended.is_set(), engine.stats.paused_total) == (8, True, 1)
    began = len(runner.steps)
    assert slow.sequence is not None
    slow.slow = False
    slow.sequence.acknowledge(8)
    bench.run()
    assert slow.tokens == alone.tokens
    assert shapes(runner)[began:] == shapes(alone_runner)
