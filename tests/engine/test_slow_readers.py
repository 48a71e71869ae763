"""Readers that do not read."""

from __future__ import annotations

from fakes import FakeRunner
from turned_lane import TurnedLane

from shardload.engine import SamplingParams


def test_a_slow_reader_stalls_itself_only(bench: TurnedLane) -> None:
    runner = FakeRunner(reply=lambda prompt: "y" * 40)
    engine = bench.attach(runner)
    slow, quick = bench.submit(engine, [1], slow=True), bench.submit(engine, [2])
    bench.run()
    assert (len(slow.deltas), quick.text) == (8, "y" * 40)
    assert slow.sequence is not None
    slow.sequence.acknowledge(3)
    bench.run()
    assert len(slow.deltas) == 11
    slow.slow = False
    slow.sequence.acknowledge(8)
    bench.run()
    assert slow.text == "y" * 40


def test_slow_readers_give_their_slots_to_those_who_wait(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=2)
    engine = bench.attach(runner)
    slow = [bench.submit(engine, [number] * 5, max_tokens=60, slow=True) for number in (1, 2)]
    bench.run()
    quick = [bench.submit(engine, [number] * 5, max_tokens=20) for number in range(3, 8)]
    bench.run()
    assert [reader.tokens for reader in quick] == [
        runner.expected([number] * 5, 20) for number in range(3, 8)
    ]
    assert [len(reader.deltas) for reader in slow] == [8, 8]
    sequences = [reader.sequence for reader in slow if reader.sequence is not None]
    assert (engine.stats.queued, engine.stats.paused_total) == (2, 2)
    # One that was parked comes back for more than a token.
    sequences[0].acknowledge(3)
    bench.run()
    assert (engine.stats.queued, len(slow[0].deltas)) == (2, 8)
    for reader, sequence in zip(slow, sequences, strict=True):
        reader.slow = False
        sequence.acknowledge(8 - sequence.acknowledged)
    bench.run()
    assert [reader.tokens for reader in slow] == [runner.expected([number] * 5, 60) for number in (1, 2)]
    assert (engine.stats.queued, engine.stats.running) == (0, 0)


def test_a_parked_sequence_can_be_cancelled(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=1, reply=lambda prompt: "y" * 40)
    engine = bench.attach(runner)
    slow = bench.submit(engine, [1], slow=True, sampling=SamplingParams())
    bench.run()
    bench.submit(engine, [2])
    bench.run()
    assert slow.sequence is not None
    assert engine.stats.paused_total == 1
    slow.sequence.cancel()
    bench.run()
    assert not runner.open_samplers
    assert (engine.stats.queued, engine.stats.running) == (0, 0)
