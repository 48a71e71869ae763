"""What an engine's slots hold is saved, and its memory given back, while others go on."""

from __future__ import annotations

import logging
from concurrent.futures import Future

import pytest
from fakes import FakeRunner
from turned_lane import TurnedLane

from shardload.engine import Lane, Parking, ParkingLot

FIRST = list(range(100))


def test_others_go_on_while_slots_are_saved(bench: TurnedLane, parking: Parking) -> None:
    runner, other = FakeRunner(), FakeRunner(reply=lambda prompt: "x" * 40)
    engine, busy = bench.attach(runner, parking=parking), bench.attach(other, "busy")
    for number in range(4):
        bench.submit(engine, [number, *FIRST], max_tokens=2)
    bench.run()
    talker = bench.submit(busy, [1])
    bench.run(until=talker.began.is_set)
    began = len(other.steps)
    done = bench.lane.detach(engine)
    bench.run(until=done.done)
    # One slot a turn, and a look that there is no other.
    assert len(other.steps) - began in range(4, 7)
    bench.run()
    assert talker.text == "x" * 40


def test_a_state_that_cannot_be_saved_holds_nobody_up(
    bench: TurnedLane, parking: Parking, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeRunner):
        def save(self, slot: int) -> memoryview:
            raise RuntimeError("no")

    engine = bench.attach(Broken(), parking=parking)
    bench.say(engine, FIRST)
    with caplog.at_level(logging.ERROR, "shardload.engine"):
        bench.detach(engine)
    assert "was not saved" in caplog.text
    assert parking.entries == []


def test_an_idle_engine_is_parked_and_wakes_up(bench: TurnedLane, parking: Parking) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    first = bench.say(engine, FIRST)
    parked = engine.park()
    bench.run()
    assert parked.result(0) == runner.kv_bytes == runner.given_back
    assert runner.cells_used == 0
    turn = [*FIRST, *first.tokens, 7]
    reader = bench.say(engine, turn)
    assert reader.tokens == runner.expected(turn, 5)
    assert runner.restored == [104]


def test_what_is_parked_already_is_not_saved_again(bench: TurnedLane, parking: Parking) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    first = bench.say(engine, FIRST)
    for _ in range(2):
        engine.park()
        bench.run()
    bench.say(engine, [*FIRST, *first.tokens, 7], 1)
    engine.park()
    bench.run()
    # The second time with two tokens more.
    assert engine.stats.parked_total == 2
    bench.say(engine, [*FIRST, *first.tokens, 7, 1], 0)
    engine.park()
    bench.run()
    assert engine.stats.parked_total == 2


def test_a_running_sequence_keeps_its_memory(bench: TurnedLane, parking: Parking) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    bench.say(engine, FIRST)
    talker = bench.submit(engine, [5, 6, 7], max_tokens=30)
    bench.run(until=talker.began.is_set)
    parked = engine.park()
    bench.run(until=parked.done)
    assert parked.result(0) == 0
    assert (engine.stats.parked_total, runner.given_back) == (1, 0)
    bench.run()
    assert talker.tokens == runner.expected([5, 6, 7], 30)


def test_a_busy_engine_holds_no_other_up(bench: TurnedLane) -> None:
    engine, leaving = bench.attach(FakeRunner()), bench.attach(FakeRunner(), "leaving")
    bench.say(engine, FIRST)
    parked = engine.park()
    later = leaving.park()
    # Each turn ends a sequence and leaves a slot that is idle.
    for number in range(8):
        bench.submit(engine, [number, 1, 2, 3], max_tokens=1)
        bench.lane.turn()
    assert (parked.done(), later.done()) == (True, True)


def test_parking_without_a_place_empties_and_gives_back(bench: TurnedLane) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner)
    bench.say(engine, FIRST)
    parked = engine.park()
    bench.run()
    assert parked.result(0) == runner.kv_bytes
    assert bench.say(engine, [*FIRST, 1]).tokens == runner.expected([*FIRST, 1], 5)


def test_parking_and_detaching_at_once(bench: TurnedLane, lot: ParkingLot) -> None:
    for parking in (None, lot.of("weights")):
        runner = FakeRunner()
        engine = bench.attach(runner, parking=parking)
        for number in range(3):
            bench.say(engine, [number, *FIRST])
        parked, done = engine.park(), bench.lane.detach(engine)
        late = engine.park()
        bench.run(until=done.done)
        runner.close()
        bench.run()
        assert (parked.done(), late.result(0)) == (True, 0)


def test_memory_that_cannot_be_given_back(
    bench: TurnedLane, parking: Parking, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeRunner):
        def give_back(self) -> int:
            raise OSError("no")

    engine = bench.attach(Broken(), parking=parking)
    parked = engine.park()
    with caplog.at_level(logging.ERROR, "shardload.engine"):
        bench.run()
    assert parked.result(0) == 0
    assert "not given back" in caplog.text


def test_whoever_cancels_the_wait_for_parking_stops_nothing(bench: TurnedLane, parking: Parking) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    bench.say(engine, FIRST)
    parked = engine.park()
    parked.cancel()
    bench.run()
    assert runner.given_back == runner.kv_bytes


def test_a_detach_after_the_end_is_done_at_once(lot: ParkingLot) -> None:
    runner = FakeRunner()
    lane = Lane()
    engine = lane.attach(runner, name="model", parking=lot.of("weights"))
    reader = TurnedLane(lane).submit(engine, FIRST, max_tokens=2)
    TurnedLane(lane).run()
    assert reader.ended.is_set()
    lane.close()
    assert lot.memory_bytes > 0
    done: Future[None] = lane.detach(engine)
    assert done.done()
    assert engine.park().result(0) == 0
