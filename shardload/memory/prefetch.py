"""Bringing pages in behind somebody's back: in order, in the background, and only with time nobody wants."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence

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
        self.cancelled = False
        self._ranges = ranges
        # Each with its bytes that are not in memory; measured before anything is read, as readahead goes on.
        self._chunks: Iterator[tuple[Range, int]] | None = None
        self._measuring = False
        self._working = 0

    def _measure(self) -> None:
        pieces = [piece for one in self._ranges for piece in cut(one, CHUNK_BYTES)]
        self._chunks = iter([(piece, missing_bytes(piece)) for piece in pieces])

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
            try:
                if chunk is None:
                    job._measure()
                else:
                    bring_in(chunk)
            except OSError as error:
                logger.warning("reading %s ahead failed: %s", job.name, error)
                job.cancel()
            taken = self._next(job)

    def _next(self, ended: Job | None = None) -> tuple[Job, Range | None] | None:
        """What to do after something that ended: bring a chunk in, or measure a job; None ends the thread."""
        with self._lock:
            if ended is not None:
                ended._working -= 1
                self._settle(ended)
            # Whoever waits for the end of a cancelled one waits for no other job.
            for job in [job for job in self._jobs if job.cancelled]:
                self._settle(job)
            for job in sorted(self._jobs, key=lambda job: job.left_bytes):
                chunk = None
                if job._chunks is not None and not job.cancelled:
                    chunk, missing = next(job._chunks, (None, 0))
                    job.read_bytes += missing
                    job.left_bytes -= chunk.length if chunk is not None else 0
                elif not job._measuring and not job.cancelled:
                    job._measuring = True
                elif not job.cancelled:
                    continue  # it is being measured
                if job.cancelled or (job._chunks is not None and chunk is None):
                    self._settle(job, empty=True)
                    continue
                job._working += 1
                if len(self._threads) < self._limit:
                    self._start()
                return job, chunk
            self._threads.remove(threading.current_thread())
            return None

    def _settle(self, job: Job, *, empty: bool = False) -> None:
        if job in self._jobs and (empty or job.cancelled):
            self._jobs.remove(job)
        if job not in self._jobs and not job._working:
            job.done.set()


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
