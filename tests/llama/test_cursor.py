from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from shardload.engine.runner import Run
from shardload.errors import DecodeFailed, HandleClosed
from shardload.llama import Context, Model
from shardload.llama.cursor import Cursor
from shardload_native.semaphore import LARGEST_VALUE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has semaphores with names only")

PROMPT = [1, 260, 262, 270, 271, 265]


@pytest.fixture
def context(new_context: Callable[..., Context]) -> Context:
    return new_context(threads=2, threads_batch=2)


@pytest.fixture
def cursor(context: Context, model: Model) -> Iterator[Cursor]:
    with Cursor(context.pointer, model.llama) as attached:
        yield attached


def answer(context: Context, position: int) -> int:
    """The nodes of a step of one token are all alike."""
    assert context.decode([Run(0, position, [262], "last")])
    return position + 1


def test_counts_the_nodes_of_a_step(context: Context, cursor: Cursor, model: Model) -> None:
    cursor.begin("prompt")
    assert cursor.nodes == 0
    assert context.decode([Run(0, 0, PROMPT, "last")])
    assert cursor.nodes > 10 * model.n_layer
    counts = set()
    for position in range(6, 12):
        cursor.begin("answer")
        answer(context, position)
        counts.add(cursor.nodes)
    assert len(counts) == 1


def test_progress_is_measured_by_the_last_step_of_its_kind(context: Context, cursor: Cursor) -> None:
    cursor.begin("prompt")
    assert cursor.progress is None
    assert context.decode([Run(0, 0, PROMPT, "last")])
    cursor.end()
    assert cursor.progress == 1
    cursor.begin("answer")
    assert cursor.progress == 0
    position = answer(context, len(PROMPT))
    assert 0.8 < cursor.progress <= 1
    cursor.end()
    cursor.begin("answer")
    answer(context, position)
    assert cursor.progress == 1


def test_a_step_of_several_passes(new_context: Callable[..., Context], model: Model) -> None:
    context = new_context(ctx_tokens=1024, batch_tokens=1024)
    with Cursor(context.pointer, model.llama) as cursor:
        cursor.begin("prompt")
        assert context.decode([Run(0, 0, PROMPT, "last")])
        once = cursor.nodes
        cursor.end()
        cursor.begin("prompt", passes=2)
        assert context.decode([Run(1, 0, [262] * 700, "last")])
        assert cursor.nodes == pytest.approx(2 * once, rel=0.1)
        assert cursor.progress == pytest.approx(2, rel=0.1)
        cursor.end()
        cursor.begin("prompt")
        assert context.decode([Run(2, 0, PROMPT, "last")])
        assert cursor.progress == pytest.approx(1, rel=0.1)


def test_passes_that_nobody_told_of(new_context: Callable[..., Context], model: Model) -> None:
    context = new_context(ctx_tokens=1024, batch_tokens=1024)
    with Cursor(context.pointer, model.llama) as cursor:
        cursor.begin("prompt")
        assert context.decode([Run(1, 0, [262] * 700, "last")])
        cursor.end()
        cursor.begin("answer")
        answer(context, 0)
        cursor.end()
        for tokens, passes in ((PROMPT, 1), ([262] * 700, 2), (PROMPT, 1)):
            assert context.forget(2)
            assert context.forget(1)
            cursor.begin("prompt")
            assert context.decode([Run(2, 0, tokens, "last")])
            assert cursor.progress == pytest.approx(passes, rel=0.1)
            cursor.end()
            assert cursor.progress == pytest.approx(passes, rel=0.1)


def test_answers_are_the_same_with_and_without(
    context: Context, cursor: Cursor, new_context: Callable[..., Context]
) -> None:
    plain = new_context(threads=2, threads_batch=2)
    cursor.begin()
    for runner in (context, plain):
        assert runner.decode([Run(0, 0, PROMPT, "last")])
    assert (context.logits(0) == plain.logits(0)).all()


def test_another_thread_sees_how_far_it_is(context: Context, cursor: Cursor) -> None:
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(cursor.nodes)
        seen.append(cursor.nodes)

    watcher = threading.Thread(target=watch)
    cursor.begin()
    watcher.start()
    position = 0
    for _ in range(20):
        position = answer(context, position)
    done.set()
    watcher.join()
    assert seen == sorted(seen)
    assert seen[-1] == cursor.nodes > 0


def test_a_full_count_would_stop_a_step_and_beginning_prevents_it(context: Context, cursor: Cursor) -> None:
    cursor._semaphore.reset(LARGEST_VALUE - 3)
    with pytest.raises(DecodeFailed) as caught:
        answer(context, 0)
    assert caught.value.status == 2
    cursor.begin()
    answer(context, 0)
    assert 0 < cursor.nodes < 10**6


def test_detached_it_counts_no_longer(context: Context, model: Model) -> None:
    cursor = Cursor(context.pointer, model.llama)
    cursor.begin()
    position = answer(context, 0)
    counted = cursor._semaphore.value
    cursor.close()
    cursor.close()
    answer(context, position)
    assert cursor._semaphore.value == counted > 0
    with pytest.raises(HandleClosed):
        _ = cursor.nodes
    with pytest.raises(HandleClosed):
        cursor.begin()


def test_an_unclosed_one_is_a_warning(context: Context, model: Model) -> None:
    cursor = Cursor(context.pointer, model.llama)
    with pytest.warns(ResourceWarning, match="cursor"):
        del cursor
