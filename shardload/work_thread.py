"""A thread that works for others, to the very end of the process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class WorkThread:
    """Does one piece of work after the other until it is closed, or collected as garbage.

    A pool would not do: at the end of the process those refuse work before anything is closed.
    """

    def __init__(self, name: str, begin: Callable[[], None] = lambda: None) -> None:
        """``begin`` is called on the thread before anything else."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_do_all, args=(self._jobs, begin), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Have something done after all that was submitted before."""
        future: Future[T] = Future()
        self._jobs.put(partial(_do, partial(work, *arguments), future))
        return future

    def close(self) -> None:
        """Wait for what is being done, and do nothing else any more. Idempotent."""
        while True:
            try:
                self._jobs.get_nowait()
            except Empty:
                break
        self._jobs.put(None)
        self._thread.join()


def _do_all(jobs: SimpleQueue[Callable[[], None] | None], begin: Callable[[], None]) -> None:
    begin()
    while (job := jobs.get()) is not None:
        job()
        del job  # and with it what it worked on


def _do(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        del work, future  # its traceback has this frame
