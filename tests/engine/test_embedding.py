from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeRunner
from turned_lane import TurnedLane

from shardload.engine import Run
from shardload.engine.embedding import normalized
from shardload.errors import DecodeFailed, ModelUnavailable, PromptTooLong, RequestError

PROMPTS = [[1, 2, 3], [4] * 20, [5, 6], [7] * 30, [8]]


def expected(runner: FakeRunner, prompt: list[int]) -> np.ndarray:
    lonely = FakeRunner(n_embd=runner.n_embd, pooled=runner.pooled)
    lonely.forget(0)
    assert lonely.decode([Run(0, 0, prompt, "all")])
    return normalized(lonely.embedding(0))


@pytest.mark.parametrize("pooled", [True, False])
def test_prompts_share_steps_and_each_gets_its_vector(bench: TurnedLane, pooled: bool) -> None:
    runner = FakeRunner(pooled=pooled, batch_tokens=32)
    future = bench.attach(runner).embed(PROMPTS)
    bench.run()
    vectors = future.result(0)
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(vector, expected(runner, prompt))
    assert [len(runs) for runs in runner.steps] == [3, 2]
    assert runner.cells_used == 0


def test_no_prompts_are_no_vectors(bench: TurnedLane) -> None:
    assert bench.attach(FakeRunner()).embed([]).result(0) == []


def test_what_cannot_be_embedded_is_refused_at_once(bench: TurnedLane) -> None:
    engine = bench.attach(FakeRunner(batch_tokens=32))
    with pytest.raises(PromptTooLong, match="33 tokens and the context holds 32"):
        engine.embed([[1] * 33])
    with pytest.raises(RequestError, match="empty"):
        engine.embed([[1], []])


def test_a_cancelled_job_is_not_computed(bench: TurnedLane) -> None:
    runner = FakeRunner()
    engine = bench.attach(runner)
    gone, kept = engine.embed([[1]]), engine.embed([[2]])
    assert gone.cancel()
    bench.run()
    assert len(kept.result(0)) == 1
    assert len(runner.steps) == 1


def test_embeddings_and_generation_take_turns_for_a_single_slot(bench: TurnedLane) -> None:
    runner = FakeRunner(slots=1)
    engine = bench.attach(runner)
    readers = [bench.submit(engine, [number] * 4, max_tokens=3) for number in range(3)]
    jobs = [engine.embed([[50 + number]]) for number in range(3)]
    bench.run()
    for number, reader in enumerate(readers):
        assert reader.tokens == runner.expected([number] * 4, 3)
    assert all(job.done() for job in jobs)
    kinds = [runs[0].want for runs in runner.steps]
    assert kinds.index("all") < kinds.index("last", kinds.index("all")) < len(kinds) - 1


def test_a_failed_decode_fails_its_job_only(bench: TurnedLane) -> None:
    runner = FakeRunner(fail_steps=[0])
    engine = bench.attach(runner)
    lost, kept = engine.embed([[1]]), engine.embed([[2]])
    bench.run()
    with pytest.raises(DecodeFailed):
        lost.result(0)
    assert len(kept.result(0)) == 1


def test_caches_make_room_for_embeddings(bench: TurnedLane) -> None:
    runner = FakeRunner(ctx_tokens=64, slots=2)
    engine = bench.attach(runner)
    bench.submit(engine, [1] * 40, max_tokens=2)
    bench.run()
    job = engine.embed([[2] * 30])
    bench.run()
    assert len(job.result(0)) == 1


def test_prompts_that_never_fit_are_an_error(bench: TurnedLane) -> None:
    class Full(FakeRunner):
        def decode(self, runs):  # type: ignore[no-untyped-def]
            return False

    job = bench.attach(Full()).embed([[1]])
    bench.run()
    with pytest.raises(RequestError, match="does not fit"):
        job.result(0)


def test_a_detached_engine_fails_its_jobs(bench: TurnedLane) -> None:
    engine = bench.attach(FakeRunner())
    job = engine.embed([[1]])
    bench.lane.detach(engine)
    bench.run()
    with pytest.raises(ModelUnavailable, match="closed"):
        job.result(0)


def test_the_zero_vector_stays() -> None:
    assert not normalized(np.zeros(3, np.float32)).any()
