from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from packable import (
    LARGE,
    MIXTURE,
    PACKED,
    PROMPT,
    Said,
    linux_only,
    open_shelved,
    pack_file,
    said_by,
    say,
    small_model,
    speaking,
)
from paged_models import packed_bytes, paged, read_all, resident, shared_bytes, total, write_out
from turned_lane import TurnedLane

from shardload.engine import Lane, scheduler
from shardload.engine import lane as lane_module
from shardload.engine.runner import Run
from shardload.llama import Context, ContextParams, Model
from shardload.llama import context as context_module
from shardload.llama.packing import pack
from shardload.llama.paged import PagedWeights
from shardload.memory import Range
from shardload.shards.pantry import Pantry
from shardload.shards.places import merged, without

pytestmark = linux_only

SECONDS = 30


@pytest.fixture
def work_path(disk_path: Path) -> Path:
    """Pages are to leave."""
    return disk_path


def test_streamed_weights_say_the_same(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    expected = say(model)
    read_all(weights)
    weights.set_limit(total(weights) // 3)
    assert weights.streams
    with speaking(model) as speak:
        for _ in range(3):
            assert speak() == expected
        weights.set_limit(total(weights) // 2)
        assert speak() == expected
        weights.set_limit(None)
        assert not weights.streams
        before = weights.traffic
        assert speak() == expected
    assert before.page_outs > 0
    assert weights.traffic.page_outs == before.page_outs


def test_streaming_stays_within_its_limit(disk_path: Path, pantry: Pantry) -> None:
    path = small_model(disk_path / "large.gguf", "Q4_0", LARGE)
    pack_file(path, pantry)
    write_out(disk_path)
    with open_shelved(path, pantry) as model, paged(model) as weights:
        read_all(weights)
        limit = total(weights) // 2
        weights.set_limit(limit)
        weights.page_out(limit)
        say(model)
        # What the last step has left behind leaves after it. Rows of the embeddings stay.
        ends = time.monotonic() + SECONDS
        while resident(weights)[0] > 1.1 * limit:
            assert time.monotonic() < ends
        assert weights.traffic.page_ins > 0


def test_streaming_leaves_no_second_order_behind(
    stored: tuple[Model, PagedWeights], evicted: list[Range]
) -> None:
    _, weights = stored
    weights.set_limit(total(weights) // 2)
    second = [place for shard in weights.places for place in shard.second]
    working = [place for shard in weights.places for place in shard.working]
    assert shared_bytes(evicted, second) >= sum(place.length for place in without(second, merged(working)))
    embeddings = weights.places[0]
    assert embeddings.name == "embeddings"
    assert shared_bytes(evicted, embeddings.working) == embeddings.nbytes, "only rows of it are looked up"


def test_steps_are_followed_as_long_as_weights_are_streamed(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    params = ContextParams(ctx_tokens=64, threads=1, threads_batch=1)
    with Context(model, params) as context:
        for limit, followed in ((None, False), (2**18, True), (2**19, True), (None, False), (2**18, True)):
            weights.set_limit(limit)
            context.forget(0)
            assert context.decode([Run(0, 0, [1, 300, 301], "last")])
            assert (context._cursor is not None) == followed


def test_without_semaphores_steps_are_computed_and_it_is_said_once(
    stored: tuple[Model, PagedWeights], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, "sem_init")

    model, weights = stored
    expected = say(model)
    monkeypatch.setattr(context_module, "Cursor", fail)
    weights.set_limit(total(weights) // 2)
    with caplog.at_level(logging.WARNING, "shardload.llama"):
        assert say(model) == expected
    assert caplog.text.count("sem_init") == 1


def test_a_mixture_streams(disk_path: Path, pantry: Pantry) -> None:
    path = small_model(disk_path / "experts.gguf", "Q4_K", MIXTURE)
    expected = said_by(path, PACKED)
    pack_file(path, pantry)
    with open_shelved(path, pantry) as model, paged(model) as weights:
        weights.set_limit(total(weights) // 3)
        for _ in range(2):
            assert say(model) == expected


def test_what_is_packed_while_it_streams_is_streamed_from_the_store(path: Path, pantry: Pantry) -> None:
    expected = said_by(path, PACKED)
    with open_shelved(path, pantry, pack_at_once=False) as model, paged(model) as weights:
        limit = total(weights) // 2
        weights.set_limit(limit)
        assert say(model) == said_by(path)
        first = weights._streamer
        pack(model, pantry, moved=weights.refresh)
        assert packed_bytes(weights) > 0
        assert weights.streams
        assert weights._streamer is not first
        assert say(model) == expected


def test_contexts_that_step_side_by_side_share_what_is_read(
    stored: tuple[Model, PagedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that differ in the size of their context only have one of their own each, on the same weights."""
    model, weights = stored
    turns: list[int] = []
    both, one_has_ended = threading.Barrier(2), threading.Semaphore(0)

    def noted(ready: Any) -> Any:
        turn = scheduler.next_turn(ready)
        turns.append(len(turn))
        return turn

    @contextmanager
    def step(tokens: int, cursor: Any) -> Iterator[None]:
        is_first = True
        with real(tokens, cursor):
            if turns[-1] == 2:
                is_first = both.wait(SECONDS) == 0
                assert is_first or one_has_ended.acquire(timeout=SECONDS)
            yield
        if turns[-1] == 2 and is_first:
            one_has_ended.release()

    monkeypatch.setattr(lane_module, "next_turn", noted)
    monkeypatch.setattr(scheduler, "PAIRED_STEP_SECONDS", 0.0)
    monkeypatch.setattr(scheduler, "PAIRED_STEP_RATIO", 1e9)
    expected = say(model, tokens=8).tokens
    weights.set_limit(total(weights) // 2)
    real = weights.step
    monkeypatch.setattr(weights, "step", step)
    lane = Lane(clock=itertools.count().__next__)  # turns are about as long as each other
    bench = TurnedLane(lane)
    with ExitStack() as contexts:
        engines = []
        for size in (128, 256):
            params = ContextParams(ctx_tokens=size, threads=2, threads_batch=2)
            engines.append(bench.attach(contexts.enter_context(Context(model, params)), name=str(size)))
        readers = [bench.submit(engine, PROMPT, max_tokens=8) for engine in engines]
        bench.run()
        assert 2 in turns
        assert weights._streamer is not None
        assert weights._streamer.stats.passes == len(turns)
        assert [tuple(reader.tokens) for reader in readers] == [expected] * 2
        lane.close()


def test_limits_that_change_while_steps_are_computed(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    expected = say(model)
    said: list[Said] = []
    ends = threading.Event()

    def compute() -> None:
        with speaking(model) as speak:
            while not ends.is_set() or not said:
                said.append(speak(3))

    lane = threading.Thread(target=compute)
    lane.start()
    whole = total(weights)
    for share in (0.3, 0.6, None, 0.2, None, 0.5, None) * 3:
        weights.set_limit(None if share is None else int(share * whole))
    ends.set()
    lane.join(SECONDS)
    assert said
    assert all(one.tokens == expected.tokens[:3] for one in said)


def test_everything_at_once(path: Path, pantry: Pantry, disk_path: Path) -> None:
    """Steps, packing, reading ahead, paging out, streaming and measuring, each on a thread of its own."""
    expected = said_by(path, PACKED)
    errors: list[BaseException] = []
    said: list[Said] = []
    news, enough = threading.Condition(), threading.Event()

    def tell(where: list[Any], what: object) -> None:
        with news:
            where.append(what)
            news.notify_all()

    def wait_for(count: int) -> None:
        with news:
            assert news.wait_for(lambda: len(said) >= count or errors, SECONDS)

    def repeated(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not enough.is_set():
                    work()
            except BaseException as error:
                tell(errors, error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with open_shelved(path, pantry) as model, paged(model) as weights, speaking(model) as speak:
        weights.choose = lambda tokens: "file" if tokens > 1 and len(said) % 2 else "packed"
        threads = [
            repeated(lambda: tell(said, speak())),
            repeated(weights.bring_back),
            repeated(lambda: weights.page_out(2**17)),
            repeated(lambda: (weights.set_limit(2**18), weights.set_limit(None))),
            repeated(lambda: weights.traffic),
        ]
        try:
            wait_for(3)
            pack(model, pantry, moved=weights.refresh)
            wait_for(8)
        finally:
            enough.set()
            for thread in threads:
                thread.join(SECONDS)
        assert errors == []
        weights.choose = lambda _: "packed"
        assert speak() == expected
        assert {one.tokens for one in said} == {expected.tokens}
