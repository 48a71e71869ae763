"""Bringing pages in behind somebody's back: in order, in the background, and only with time nobody wants."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from shardload.errors import HandleClosed
from shardload.memory.advise import populate_read
from shardload.memory.pages import Range, cut, page_span
from shardload.memory.platform import current
from shardload.memory.residency import resident_bytes

logger = logging.getLogger("shardload.memory")

# The first token of a cold model comes 13 % sooner than with two reads of 4 MiB at once: a disk gives more
# when it has more to do. Eight of them gain nothing more.
THREADS = 4
CHUNK_BYTES = 8 * 2**20


class Job:
    """Ranges that are being brought in, in their order.

    ``done`` is set when no thread works on them any more: all are in, reading failed, or it was cancelled.
    ``read_bytes`` were not in memory before. On any thread.
    """

    def __init__(self, ranges: Sequence[Range], name: str) -> None:
        self.name = name
        self.done = threading.Event()
        self.read_bytes = 0
        self.left_bytes = sum(one.length for one in ranges)
        self.is_over = False
        self._ranges = ranges
        self._lock = threading.Lock()
        # Each with its bytes that are not in memory; measured before anything is read, as readahead goes on.
        self._chunks: Iterator[tuple[Range, int]] | None = None
        self._measuring = False
        self._working = 0

    def cancel(self) -> None:
        """Bring no more in; what is under way is ended first, see ``done``."""
        with self._lock:
            self._finish()

    def take(self) -> Callable[[], None] | None:
        """What to do next, if there is something; whoever takes it calls `worked` when it is done."""
        with self._lock:
            work = None if self.is_over else self._next()
            self._working += work is not None
            return work

    def worked(self) -> None:
        """What was taken is done with, well or not."""
        with self._lock:
            self._working -= 1
            self._settle()

    def _next(self) -> Callable[[], None] | None:
        if self._chunks is None:
            first, self._measuring = not self._measuring, True
            return self._measure if first else None
        chunk, missing = next(self._chunks, (None, 0))
        if chunk is None:
            self._finish()
            return None
        self.read_bytes += missing
        self.left_bytes -= chunk.length
        return partial(bring_in, chunk)

    def _measure(self) -> None:
        pieces = [piece for one in self._ranges for piece in cut(one, CHUNK_BYTES)]
        self._chunks = iter([(piece, missing_bytes(piece)) for piece in pieces])

    def _finish(self) -> None:
        self.is_over = True
        self._settle()

    def _settle(self) -> None:
        if self.is_over and not self._working:
            self.done.set()


class Prefetcher:
    """Brings ranges in with few threads of lowest urgency, which live while there is something to do.

    The job with the least left comes first, so that a large one holds nobody up. Every method may be called
    on any thread.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    def bring(self, ranges: Sequence[Range], *, name: str) -> Job:
        """Begin to bring ranges in; they stay mapped until the job is ``done``. Returns at once."""
        job = Job(ranges, name)
        with self._lock:
            if self._closed:
                raise HandleClosed("prefetcher")
            self._jobs.append(job)
            self._start_another()
            if not self._threads:
                logger.warning("%s is not read ahead: no thread could be started", name)
                self._jobs.remove(job)
                job.cancel()
        return job

    def close(self) -> None:
        """Cancel all jobs, and wait for what is under way."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.cancel()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn("unclosed prefetcher", ResourceWarning, stacklevel=1, source=self)

    def _start_another(self) -> None:
        if len(self._threads) == self._limit:
            return
        thread = threading.Thread(target=self._work, name="shardload-prefetch", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process may have no more of them
            logger.debug("reading ahead goes on with %d threads: %s", len(self._threads), error)
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        current().yield_to_others()
        while (taken := self._next()) is not None:
            job, work = taken
            try:
                work()
            except Exception as error:
                logger.warning(
                    "reading %s ahead failed: %s", job.name, error, exc_info=not isinstance(error, OSError)
                )
                job.cancel()
            finally:
                job.worked()

    def _next(self) -> tuple[Job, Callable[[], None]] | None:
        """Some work, and whose it is; None ends the thread."""
        with self._lock:
            for job in sorted(self._jobs, key=lambda job: job.left_bytes):
                work = job.take()
                if job.is_over:
                    self._jobs.remove(job)
                if work is not None:
                    self._start_another()
                    return job, work
            self._threads.remove(threading.current_thread())
            return None


def bring_in(place: Range) -> None:
    """Bring a range in and wait.

    Pages that are in memory already are entered into the page table, which spares whoever uses them that
    interruption. Raises OSError where the range is not mapped or cannot be read.
    """
    span = page_span(place.address, place.length)
    populate_read(span.address, span.length)


def missing_bytes(place: Range) -> int:
    """Bytes of a range that are not in memory, as far as the system tells."""
    resident = resident_bytes(place.address, place.length)
    return 0 if resident is None else place.length - resident
