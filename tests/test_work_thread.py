from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from shardload.work_thread import WorkThread


@pytest.fixture
def worker() -> Iterator[WorkThread]:
    worker = WorkThread("worker")
    yield worker
    worker.close()


def test_work_is_done_in_order_on_one_thread(worker: WorkThread) -> None:
    done: list[int] = []
    futures = [worker.submit(done.append, number) for number in range(5)]
    assert worker.submit(threading.get_ident).result(30) == worker.submit(threading.get_ident).result(30)
    assert done == [0, 1, 2, 3, 4]
    assert all(future.done() for future in futures)


def test_errors_come_out_and_end_nothing(worker: WorkThread) -> None:
    def fail() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        worker.submit(fail).result(30)
    assert worker.submit(int, 5).result(30) == 5


def test_what_has_not_begun_is_cancelled_by_closing(worker: WorkThread) -> None:
    gate, entered, cancelled = threading.Event(), threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        assert gate.wait(30)
        return "done"

    running, waiting = worker.submit(hold), worker.submit(int)
    waiting.add_done_callback(lambda _: cancelled.set())
    assert entered.wait(30)
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert cancelled.wait(30)
    assert waiting.cancelled()
    assert worker.submit(int).cancelled()
    gate.set()
    closing.join(30)
    assert running.result(30) == "done"
    worker.close()


def test_failed_work_is_freed_with_its_future(worker: WorkThread) -> None:
    class Heavy:
        def fail(self) -> None:
            raise KeyError

    heavy = Heavy()
    seen = weakref.ref(heavy)
    gc.disable()
    try:
        future = worker.submit(heavy.fail)
        with pytest.raises(KeyError):
            future.result(30)
        worker.submit(int).result(30)
        del heavy, future
        assert seen() is None
    finally:
        gc.enable()


def test_one_that_nobody_has_any_more_ends() -> None:
    worker = WorkThread("forgotten")
    thread = worker._thread
    del worker
    thread.join(30)
    assert not thread.is_alive()
