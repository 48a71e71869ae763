from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from fakes import FakeRunner
from turned_lane import GREEDY, Reader, TurnedLane

from shardload.engine import Engine, GenerationRequest, Lane, Run
from shardload.errors import HandleClosed, ModelUnavailable, NativeError, ShuttingDown


@pytest.fixture
def lane() -> Iterator[Lane]:
    with Lane() as lane:
        yield lane


def submit(
    engine: Engine, prompt: Sequence[int], max_tokens: int | None = None, *, slow: bool = False
) -> Reader:
    reader = Reader(slow=slow)
    reader.sequence = engine.submit(GenerationRequest(prompt, max_tokens, GREEDY), reader)
    return reader


def test_everything_is_computed_on_one_thread(lane: Lane) -> None:
    runners = [FakeRunner(), FakeRunner()]
    engines = [lane.attach(runner, name=str(number)) for number, runner in enumerate(runners)]
    readers = [submit(engine, [number], 8) for engine in engines for number in range(6)]
    for number, reader in enumerate(readers):
        assert reader.wait().tokens == runners[0].expected([number % 6], 8)
    assert len(runners[0].threads | runners[1].threads) == 1
    assert threading.get_ident() not in runners[0].threads


def test_a_sleeping_lane_wakes_for_work_from_any_thread(lane: Lane) -> None:
    runner = FakeRunner()
    engine = lane.attach(runner, name="model")
    for number in range(5):
        readers: list[Reader] = []
        thread = threading.Thread(target=lambda: readers.append(submit(engine, [number], 3)))  # noqa: B023
        thread.start()
        thread.join()
        assert readers[0].wait().tokens == runner.expected([number], 3)


def test_a_cancellation_during_a_step_counts_before_the_next(lane: Lane) -> None:
    runner = FakeRunner(slots=1)
    runner.gate.clear()
    engine = lane.attach(runner, name="model")
    left = submit(engine, [1] * 5)
    assert runner.entered.wait(30)
    next_one = submit(engine, [2] * 5, 2)
    assert left.sequence is not None
    left.sequence.cancel()
    runner.gate.set()
    next_one.wait()
    assert [runs[0].tokens[0] for runs in runner.steps[:2]] == [1, 2]
    assert not left.deltas
    assert left.error is None


def test_a_detached_runner_is_not_touched_again(lane: Lane) -> None:
    runner, other = FakeRunner(ctx_tokens=4096, reply=lambda prompt: "x" * 4000), FakeRunner()
    engine, stays = lane.attach(runner, name="leaving"), lane.attach(other, name="staying")
    # A reader that takes nothing holds its sequence at the output limit.
    reader = submit(engine, [1], slow=True)
    assert reader.began.wait(30)
    lane.detach(engine).result(30)
    runner.close()
    with pytest.raises(ModelUnavailable, match="'leaving' was closed"):
        _ = reader.wait().finish
    with pytest.raises(ModelUnavailable):
        submit(engine, [1])
    with pytest.raises(ModelUnavailable):
        engine.embed([[1]])
    assert submit(stays, [1], 3).wait().tokens == other.expected([1], 3)


def test_detaching_twice_or_after_the_end_is_harmless() -> None:
    lane = Lane()
    engine = lane.attach(FakeRunner(), name="model")
    lane.start()
    assert lane.detach(engine).result(30) is None
    assert lane.detach(engine).result(30) is None
    lane.close()
    assert lane.detach(engine).result(0) is None
    assert engine.detached


def test_closing_fails_what_is_left_and_refuses_more() -> None:
    lane = Lane()
    runner = FakeRunner(ctx_tokens=4096, reply=lambda prompt: "x" * 4000)
    engine = lane.attach(runner, name="model")
    lane.start()
    reader = submit(engine, [1], slow=True)
    assert reader.began.wait(30)
    lane.close()
    lane.close()
    with pytest.raises(ShuttingDown):
        _ = reader.wait().finish
    late = submit(engine, [2])
    with pytest.raises(ShuttingDown):
        _ = late.wait().finish
    with pytest.raises(ShuttingDown):
        engine.embed([[1]]).result(0)
    with pytest.raises(HandleClosed):
        lane.attach(runner, name="late")
    with pytest.raises(HandleClosed):
        lane.start()


def test_closing_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane()
    runner = FakeRunner()
    runner.gate.clear()
    engine = lane.attach(runner, name="model")
    lane.start()
    reader = submit(engine, [1])
    assert runner.entered.wait(30)
    lane.close(timeout_seconds=0.01)
    assert "did not end within" in caplog.text
    assert not reader.ended.is_set()
    runner.gate.set()
    lane.close()
    with pytest.raises(ShuttingDown):
        _ = reader.wait().finish


def test_a_lane_that_never_started_closes() -> None:
    lane = Lane()
    reader = submit(lane.attach(FakeRunner(), name="model"), [1])
    lane.close()
    with pytest.raises(ShuttingDown):
        _ = reader.finish


def test_after_the_end_one_thread_at_a_time_is_the_lane() -> None:
    lane = Lane()
    lane.close()
    inside, leave = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        inside.set()
        assert leave.wait(30)
        lane.post(done.append, "within")
        done.append("first")

    threads = [threading.Thread(target=lane.post, args=(first,))]
    threads[0].start()
    assert inside.wait(30)
    threads.append(threading.Thread(target=lane.post, args=(done.append, "second")))
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(30)
    assert done == ["within", "first", "second"]


def test_an_engine_that_breaks_does_not_take_the_lane_along(
    lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeRunner):
        def decode(self, runs: Sequence[Run]) -> bool:
            raise RuntimeError("torn")

        def forget(self, slot: int, start: int = 0) -> bool:
            raise RuntimeError("worn")

    broken, sound = lane.attach(Broken(), name="broken"), lane.attach(runner := FakeRunner(), name="sound")
    with pytest.raises(NativeError, match="worn"):
        _ = submit(broken, [1]).wait().finish
    assert submit(sound, [1], 3).wait().tokens == runner.expected([1], 3)
    assert "the engine failed" in caplog.text


def test_a_sink_that_raises_loses_its_own_sequence_only(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(slots=2)
    engine = lane.attach(runner, name="model")

    def deaf(events: object) -> None:
        raise OSError("gone")

    lost = engine.submit(GenerationRequest([1], None, GREEDY), deaf)
    assert submit(engine, [2], 20).wait().tokens == runner.expected([2], 20)
    assert lost.cancelled
    assert caplog.text.count("a sink failed") == 1


def test_sinks_with_one_flush_are_flushed_once_a_step(bench: TurnedLane) -> None:
    engine = bench.attach(FakeRunner(reply=lambda prompt: "abc"))
    flushes = []

    def flush() -> None:
        flushes.append(len(flushes))

    for number in range(3):
        reader = Reader()
        reader.flush = flush  # type: ignore[attr-defined]
        engine.submit(GenerationRequest([number], None, GREEDY), reader)
    turns = bench.run()
    assert len(flushes) == turns == 4


def test_engines_share_the_lane_by_compute_time_and_weight() -> None:
    clock = Clock()
    bench = TurnedLane(Lane(output_limit_tokens=1000, clock=clock))
    runners = [TimedRunner(clock, seconds) for seconds in (0.01, 0.03, 0.01)]
    engines = [
        bench.attach(runner, str(number), weight)
        for number, (runner, weight) in enumerate(zip(runners, (1, 1, 2), strict=True))
    ]
    for engine in engines:
        bench.submit(engine, [1], ignore_eos=True)
    for _ in range(400):
        bench.lane.turn()
    spent = [engine.stats.compute_seconds_total for engine in engines]
    assert spent[1] == pytest.approx(spent[0], rel=0.1)
    assert spent[2] == pytest.approx(2 * spent[0], rel=0.1)
    bench.lane.close()


def test_an_engine_that_slept_gets_no_more_than_its_share() -> None:
    clock = Clock()
    bench = TurnedLane(Lane(output_limit_tokens=1000, clock=clock))
    early, late = TimedRunner(clock, 0.01), TimedRunner(clock, 0.01)
    first, second = bench.attach(early, "early"), bench.attach(late, "late")
    bench.submit(first, [1], ignore_eos=True)
    for _ in range(100):
        bench.lane.turn()
    bench.submit(second, [1], ignore_eos=True)
    for _ in range(20):
        bench.lane.turn()
    assert 9 <= len(late.steps) <= 11
    bench.lane.close()


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(FakeRunner):
    """Each decode takes so many seconds of a clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(ctx_tokens=4096, reply=lambda prompt: "x" * 4000)
        self._clock, self._seconds = clock, seconds

    def decode(self, runs: Sequence[Run]) -> bool:
        self._clock.now += self._seconds
        return super().decode(runs)


def test_a_weight_must_be_positive(bench: TurnedLane) -> None:
    with pytest.raises(ValueError, match="positive"):
        bench.attach(FakeRunner(), weight=0)


def test_two_that_generate_compute_at_the_same_time_on_halves_of_the_cores(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardload.engine.lane.next_turn", lambda ready: list(ready[:2]))
    together = threading.Barrier(2)
    runners = [FakeRunner(reply=lambda prompt: "x" * 30) for _ in range(2)]

    def meeting(runner: FakeRunner) -> Callable[[Sequence[Run]], None]:
        meetings = iter(range(10))

        def meet(runs: Sequence[Run]) -> None:
            # Each counts by itself: what the other one has done may change between two looks at it.
            if runner.parts[-1] == 2 and next(meetings, None) is not None:
                together.wait(30)

        return meet

    for runner in runners:
        runner.on_decode = meeting(runner)
    engines = [lane.attach(runner, name=str(number)) for number, runner in enumerate(runners)]
    # The first one is held in a step of its own until the second one waits too.
    runners[0].gate.clear()
    readers = [submit(engine, [number], 20) for number, engine in enumerate(engines)]
    assert runners[0].entered.wait(30)
    runners[0].gate.set()
    assert [reader.wait().text for reader in readers] == ["x" * 20] * 2
    assert 2 in runners[0].parts
    assert 2 in runners[1].parts


def test_without_a_second_thread_models_compute_one_after_the_other(
    bench: TurnedLane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shardload.engine.lane.next_turn", lambda ready: list(ready[:2]))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "lane-second" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    runners = [FakeRunner() for _ in range(2)]
    engines = [bench.attach(runner, str(number)) for number, runner in enumerate(runners)]
    readers = [bench.submit(engine, [number], max_tokens=20) for number, engine in enumerate(engines)]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            bench.lane.turn()
    assert [len(runner.steps) for runner in runners] == [3, 0]
    bench.run()
    assert [reader.tokens for reader in readers] == [
        runner.expected([number], 20) for number, runner in enumerate(runners)
    ]
    assert 2 in runners[1].parts, "as soon as there are threads again"
    assert caplog.text.count("can't start new thread") == 1


def test_a_turn_that_breaks_is_told(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(ready: object) -> list[object]:
        raise RuntimeError("torn")

    monkeypatch.setattr("shardload.engine.lane.next_turn", broken)
    reader = submit(lane.attach(FakeRunner(), name="model"), [1], 3)
    with pytest.raises(NativeError, match="torn"):
        _ = reader.wait().finish
    assert "the engine failed" in caplog.text


def test_an_engine_that_fails_beside_another_fails_alone(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shardload.engine.lane.next_turn", lambda ready: list(ready[:2]))

    class Broken(FakeRunner):
        def divide_cores(self, parts: int) -> None:
            super().divide_cores(parts)
            if parts == 2:
                self.batch_tokens = None  # type: ignore[assignment]

    good, broken = FakeRunner(reply=lambda prompt: "x" * 40), Broken(reply=lambda prompt: "x" * 40)
    broken_engine = lane.attach(broken, name="broken")
    good_engine = lane.attach(good, name="good")
    good.gate.clear()
    survivor = submit(good_engine, [1], 20)
    assert good.entered.wait(30)
    victim = submit(broken_engine, [2], 20)
    good.gate.set()
    assert survivor.wait().text == "x" * 20
    with pytest.raises(NativeError, match="'broken' failed"):
        _ = victim.wait().finish
    assert "the engine failed" in caplog.text
