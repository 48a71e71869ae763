"""Conversations that lose their place and come back, over a lane that is turned by hand."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from fakes import FakeRunner
from turned_lane import GREEDY, TurnedLane

from shardload.engine import Lane, Parking, ParkingLot, SamplingParams
from shardload.errors import ModelUnavailable, ShuttingDown

FIRST = list(range(100))


def test_a_conversation_goes_on_in_a_new_context(bench: TurnedLane, parking: Parking) -> None:
    old, new = FakeRunner(), FakeRunner(ctx_tokens=256, slots=2)
    engine = bench.attach(old, parking=parking)
    first = bench.say(engine, FIRST)
    bench.detach(engine)
    old.close()
    assert engine.stats.parked_total == 1
    engine = bench.attach(new, parking=parking)
    turn = [*FIRST, *first.tokens, 7, 8]
    second = bench.say(engine, turn)
    assert second.tokens == new.expected(turn, 5)
    assert second.finish.usage.cached_tokens == 104
    assert new.restored == [104]
    assert sum(len(run.tokens) for runs in new.steps for run in runs) == 3 + 4
    assert (engine.stats.restored_total, engine.stats.restored_tokens_total) == (1, 104)


def test_what_differs_at_the_end_is_cut_off(bench: TurnedLane, parking: Parking) -> None:
    engine = bench.attach(FakeRunner(), parking=parking)
    bench.say(engine, FIRST, 20)
    bench.detach(engine)
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    turn = [*FIRST[:90], 200, 201]
    assert bench.say(engine, turn).tokens == runner.expected(turn, 5)
    assert runner.steps[0][0].start == 90
    # The same prompt again: its last token is computed, its logits are needed.
    bench.detach(engine)
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    assert bench.say(engine, turn).tokens == runner.expected(turn, 5)
    assert runner.steps[0][0].start == 91


def test_short_ones_and_strangers_stay_away(bench: TurnedLane, lot: ParkingLot) -> None:
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    bench.say(engine, FIRST[:50])
    bench.detach(engine)
    assert lot.memory_bytes == 0
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    bench.say(engine, FIRST)
    bench.detach(engine)
    assert lot.memory_bytes > 0
    for runner, key in ((FakeRunner(), "others"), (FakeRunner(state_kind="newer"), "weights")):
        engine = bench.attach(runner, parking=lot.of(key))
        reader = bench.say(engine, [*FIRST, 1])
        assert reader.tokens == runner.expected([*FIRST, 1], 5)
        assert (runner.restored, reader.finish.usage.cached_tokens) == ([], 0)
        bench.lane.detach(engine)


def test_a_small_part_of_a_long_one_is_not_worth_it(bench: TurnedLane, lot: ParkingLot) -> None:
    long = [number % 250 for number in range(1700)]
    engine = bench.attach(FakeRunner(ctx_tokens=2048), parking=lot.of("weights"))
    bench.say(engine, long)
    bench.detach(engine)
    runner = FakeRunner(ctx_tokens=2048)
    engine = bench.attach(runner, parking=lot.of("weights"))
    bench.say(engine, [*long[:80], 255])
    assert runner.restored == []
    bench.say(engine, [*long[:400], 255])
    assert runner.restored == [1704]


def test_what_is_in_a_slot_is_used_where_it_is_as_good(bench: TurnedLane, parking: Parking) -> None:
    engine = bench.attach(FakeRunner(), parking=parking)
    bench.say(engine, FIRST)
    bench.detach(engine)
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    bench.say(engine, [*FIRST[:60], 9])
    assert runner.restored == []
    bench.say(engine, [*FIRST, 1])
    assert runner.restored == []
    assert runner.steps[-1][0].start >= 60


def test_several_conversations_of_one_context(bench: TurnedLane, parking: Parking) -> None:
    prompts = [[number, *FIRST] for number in range(4)]
    engine = bench.attach(FakeRunner(), parking=parking)
    for prompt in prompts:
        bench.submit(engine, prompt, max_tokens=5)
    bench.run()
    bench.detach(engine)
    assert engine.stats.parked_total == 4
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    readers = [bench.submit(engine, [*prompt, 99], max_tokens=5) for prompt in prompts]
    bench.run()
    for prompt, reader in zip(prompts, readers, strict=True):
        assert reader.tokens == runner.expected([*prompt, 99], 5)
    assert len(runner.restored) == 4


def test_one_that_is_cut_off_is_parked_as_far_as_it_was(bench: TurnedLane, parking: Parking) -> None:
    runner = FakeRunner(batch_tokens=32)
    engine = bench.attach(runner, parking=parking)
    reader = bench.submit(engine, [*FIRST, *FIRST], max_tokens=5)
    bench.run(until=lambda: len(runner.steps) == 3)
    bench.detach(engine)
    with pytest.raises(ModelUnavailable):
        _ = reader.finish
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    assert bench.say(engine, [*FIRST, *FIRST]).tokens == runner.expected([*FIRST, *FIRST], 5)
    assert runner.restored == [96]


def test_a_recurrent_state_comes_back_whole_or_not(bench: TurnedLane, parking: Parking) -> None:
    engine = bench.attach(FakeRunner(recurrent=True), parking=parking)
    first = bench.say(engine, FIRST)
    bench.detach(engine)
    runner = FakeRunner(recurrent=True)
    engine = bench.attach(runner, parking=parking)
    torn = [*FIRST[:90], 255]
    assert bench.say(engine, torn).tokens == runner.expected(torn, 5)
    assert runner.restored == [104]
    # Known by now: nothing is fetched that would have to be cut.
    torn = [*FIRST[:91], 254]
    assert bench.say(engine, torn).tokens == runner.expected(torn, 5)
    assert runner.restored == [104]
    whole = [*FIRST, *first.tokens, 3]
    reader = bench.say(engine, whole)
    assert reader.tokens == runner.expected(whole, 5)
    assert runner.restored == [104, 104]
    assert reader.finish.usage.cached_tokens == 104


def test_idle_caches_make_room_and_running_ones_do_not(bench: TurnedLane, lot: ParkingLot) -> None:
    long = [number % 250 for number in range(150)]
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    bench.say(engine, long)
    bench.detach(engine)
    runner = FakeRunner(ctx_tokens=256, slots=3)
    engine = bench.attach(runner, parking=lot.of("weights"))
    bench.say(engine, [251] * 60)
    bench.say(engine, [252] * 60)
    assert bench.say(engine, [*long, 1]).tokens == runner.expected([*long, 1], 5)
    assert runner.restored == [154]
    runner = FakeRunner(ctx_tokens=256, slots=3)
    engine = bench.attach(runner, parking=lot.of("weights"))
    talker = bench.submit(engine, [251] * 40, max_tokens=70, ignore_eos=True)
    bench.run(until=lambda: len(runner.steps) > 40)
    # Running sequences hold what it needs: computed as far as there is room, or when they are done.
    reader = bench.submit(engine, [*long[:140], 1], max_tokens=5)
    bench.run()
    assert talker.tokens == runner.expected([251] * 40, 70)
    assert reader.tokens == runner.expected([*long[:140], 1], 5)


def test_a_state_that_is_not_accepted_is_computed_again(bench: TurnedLane, parking: Parking) -> None:
    class Refusing(FakeRunner):
        def restore(self, slot: int, state: memoryview) -> bool:
            assert not self._cells[slot]
            return False

    engine = bench.attach(FakeRunner(), parking=parking)
    bench.say(engine, FIRST)
    bench.detach(engine)
    runner = Refusing()
    engine = bench.attach(runner, parking=parking)
    reader = bench.say(engine, [*FIRST, 1])
    assert reader.tokens == runner.expected([*FIRST, 1], 5)
    assert reader.finish.usage.cached_tokens == 0


def test_seeded_texts_do_not_depend_on_what_is_parked(bench: TurnedLane, parking: Parking) -> None:
    engine = bench.attach(FakeRunner(), parking=parking)
    bench.say(engine, FIRST)
    bench.detach(engine)
    runner = FakeRunner()
    engine = bench.attach(runner, parking=parking)
    reader = bench.submit(engine, [*FIRST, 1], sampling=SamplingParams(seed=3), max_tokens=4)
    bench.run()
    assert (runner.restored, reader.finish.usage.cached_tokens) == ([], 0)


# -- files


def test_what_is_on_disk_is_fetched_while_others_compute(bench: TurnedLane, tmp_path: Path) -> None:
    lot = ParkingLot(tmp_path, 0, 10**6)
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    first = bench.say(engine, FIRST)
    bench.detach(engine)
    lot.flush()
    runner = FakeRunner(slots=2)
    engine = bench.attach(runner, parking=lot.of("weights"))
    gate = threading.Event()
    lot._reader.submit(gate.wait, 30)
    turn = [*FIRST, *first.tokens, 3]
    waiting = bench.submit(engine, turn, max_tokens=5)
    other = bench.submit(engine, [9, 9], max_tokens=5)
    third = bench.submit(engine, [8, 8], max_tokens=5)
    bench.run()
    assert other.ended.is_set()
    assert third.ended.is_set()
    assert not waiting.began.is_set()
    assert engine.stats.queued == 1
    gate.set()
    lot._reader.submit(lambda: None).result(30)
    bench.run()
    assert waiting.tokens == runner.expected(turn, 5)
    assert runner.restored == [104]
    lot.close()


def test_whoever_waits_for_the_disk_can_leave(bench: TurnedLane, tmp_path: Path) -> None:
    lot = ParkingLot(tmp_path, 0, 10**6)
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    bench.say(engine, FIRST)
    bench.detach(engine)
    lot.flush()
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    gate = threading.Event()
    lot._reader.submit(gate.wait, 30)
    waiting = bench.submit(engine, [*FIRST, 1])
    bench.run()
    assert waiting.sequence is not None
    waiting.sequence.cancel()
    gate.set()
    bench.run()
    assert (engine.stats.queued, engine.stats.running) == (0, 0)
    lot.close()


def test_a_damaged_file_is_computed_again(
    bench: TurnedLane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lot = ParkingLot(tmp_path, 0, 10**6)
    engine = bench.attach(FakeRunner(), parking=lot.of("weights"))
    bench.say(engine, FIRST)
    bench.detach(engine)
    lot.flush()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    runner = FakeRunner()
    engine = bench.attach(runner, parking=lot.of("weights"))
    reader = bench.submit(engine, [*FIRST, 1], max_tokens=5)
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        bench.run()
        lot._reader.submit(lambda: None).result(30)
        bench.run()
    assert "computed again" in caplog.text
    assert reader.tokens == runner.expected([*FIRST, 1], 5)
    assert runner.restored == []
    lot.close()


def test_a_restart_of_everything(tmp_path: Path) -> None:
    """On real threads: the lane's end saves what is attached, and what was detached before."""
    lot = ParkingLot(tmp_path, 10**6, 10**6)
    runners = [FakeRunner(), FakeRunner()]
    with Lane() as lane:
        engines = [
            lane.attach(runner, name=f"model {number}", parking=lot.of(str(number)))
            for number, runner in enumerate(runners)
        ]
        turned = TurnedLane(lane)
        texts = [turned.submit(engine, FIRST, max_tokens=5).wait().tokens for engine in engines]
        lane.detach(engines[0]).result(30)
        running = TurnedLane(lane).submit(engines[1], [1], max_tokens=400, ignore_eos=True)
        assert running.began.wait(30)
    if running.error is not None:
        assert isinstance(running.error, ShuttingDown)
    lot.close()
    # And the one that was cut off, if it had come far enough.
    assert len(list(tmp_path.iterdir())) in (2, 3)
    lot = ParkingLot(tmp_path, 10**6, 10**6)
    with Lane() as lane:
        for number in range(2):
            runner = FakeRunner()
            engine = lane.attach(runner, name="again", parking=lot.of(str(number)))
            turn = [*FIRST, *texts[number], 7]
            reader = TurnedLane(lane).submit(engine, turn, max_tokens=5, sampling=GREEDY).wait()
            assert reader.tokens == runner.expected(turn, 5)
            assert runner.restored[0] == 104
            lane.detach(engine).result(30)
    lot.close()
