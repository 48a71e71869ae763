"""Bringing pages in behind somebody's back: in order, in the background, and only with time nobody wants."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence

from shardload.errors import HandleClosed
from shardload.memory.advise import populate_read
from shardload.memory.pages import Range, cut, page_span
from shardload.memory.platform import current
from shardload.memory.residency import resident_bytes

logger = logging.getLogger("shardload.memory")

# Two reads at once keep a disk busy; more would take turns with those that somebody waits for.
THREADS = 2
CHUNK_BYTES = 4 * 2**20


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
        self.cancelled = False
        self._chunks = (piece for one in ranges for piece in cut(one, CHUNK_BYTES))
        self._working = 0

    def cancel(self) -> None:
        """Bring no more in; what is under way is ended first, see ``done``."""
        self.cancelled = True


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
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < self._limit:
                self._start()
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

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="shardload-prefetch", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        current().yield_to_others()
        taken = self._next()
        while taken is not None:
            job, chunk = taken
            read_bytes = 0
            try:
                read_bytes = bring_in(chunk)
            except OSError as error:
                logger.warning("reading %s ahead failed: %s", job.name, error)
                job.cancel()
            taken = self._next(job, read_bytes)

    def _next(self, ended: Job | None = None, read_bytes: int = 0) -> tuple[Job, Range] | None:
        """The next chunk to bring in, after one that ended; None ends the thread."""
        with self._lock:
            if ended is not None:
                ended._working -= 1
                ended.read_bytes += read_bytes
                self._settle(ended)
            for job in sorted(self._jobs, key=lambda job: job.left_bytes):
                chunk = None if job.cancelled else next(job._chunks, None)
                if chunk is not None:
                    job._working += 1
                    job.left_bytes -= chunk.length
                    if len(self._threads) < self._limit:
                        self._start()
                    return job, chunk
                self._settle(job, empty=True)
            self._threads.remove(threading.current_thread())
            return None

    def _settle(self, job: Job, *, empty: bool = False) -> None:
        if job in self._jobs and (empty or job.cancelled):
            self._jobs.remove(job)
        if job not in self._jobs and not job._working:
            job.done.set()


def bring_in(place: Range) -> int:
    """Bring a range in and wait; the bytes of it that were not in memory, as far as the system tells.

    Pages that are in memory already are entered into the page table, which spares whoever uses them that
    interruption. Raises OSError where the range is not mapped or cannot be read.
    """
    span = page_span(place.address, place.length)
    before = resident_bytes(span.address, span.length)
    populate_read(span.address, span.length)
    return 0 if before is None else span.length - before
