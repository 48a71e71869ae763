"""A thread that works for others, to the very end of the process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class WorkThread:
    """Does one piece of work after the other until it is closed, or collected as garbage.

    A pool would not do: at the end of the process those refuse work before anything is closed.
    """

    def __init__(self, name: str, begin: Callable[[], None] = lambda: None) -> None:
        """``begin`` is called on the thread before anything else."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=_do_all, args=(self._jobs, begin), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Have something done after all that was submitted before; cancelled after ``close``."""
        job = _Job(partial(work, *arguments))
        with self._lock:
            if self._closed:
                job.future.cancel()
            else:
                self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Wait for what is being done, and cancel what has not begun. Idempotent."""
        with self._lock:
            self._closed = True
        with suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.future.cancel()
        self._jobs.put(None)
        self._thread.join()


class _Job:
    """A piece of work, and who waits for it."""

    __slots__ = ("_work", "future")

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.future: Future[Any] = Future()

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._work())
        except BaseException as error:
            self.future.set_exception(error)
            del self  # the error's traceback has this frame


def _do_all(jobs: SimpleQueue[_Job | None], begin: Callable[[], None]) -> None:
    begin()
    while (job := jobs.get()) is not None:
        job.do()
        del job  # and with it what it worked on
