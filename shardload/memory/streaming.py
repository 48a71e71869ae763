"""Weights larger than memory: a share of each layer stays, the rest is read ahead of the computation."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shardload.errors import HandleClosed
from shardload.memory.course import BEHIND_LAYERS, Course, Drop, Read
from shardload.memory.division import divide, hold_within, subtract, without_overlaps
from shardload.memory.eviction import evict
from shardload.memory.pages import Range
from shardload.memory.prefetch import bring_in, missing_bytes
from shardload.memory.residency import resident_bytes

logger = logging.getLogger("shardload.memory")

THREADS = 2
WINDOW_BYTES = 32 * 2**20
CHUNK_BYTES = 4 * 2**20
# How often the cursor is looked at while everything that should be in memory is.
POLL_SECONDS = 0.002

Progress = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class StreamStats:
    """Totals since the streamer was made.

    Steps that run side by side share a pass. ``read_bytes`` came into memory, whoever asked for them; those
    of streamed parts are counted as they leave. ``waited_seconds`` is how long the computation was where
    nothing had been read yet: an estimate.
    """

    passes: int = 0
    read_bytes: int = 0
    dropped_bytes: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Surplus:
    """A part of a streamed range that is not in the window and may be in memory."""

    of: Range
    place: Range


def hold_bytes_within(
    layers: Sequence[Sequence[Range]], limit_bytes: int, window_bytes: int = WINDOW_BYTES
) -> int:
    """What a streamer may hold if all that it has in memory is to stay within a limit."""
    return hold_within(layers, limit_bytes, window_bytes, 1 + BEHIND_LAYERS)


class Step:
    """A step that runs: it goes over the layers from the beginning of a pass on."""

    def __init__(self, first: int, progress: Progress) -> None:
        self.first = first
        """The passes that were done before."""
        self._progress: Progress | None = progress

    @property
    def passes(self) -> float | None:
        """How many passes of its own are done; None while that is unknown, or if asking for it has failed."""
        if self._progress is None:
            return None
        try:
            return self._progress()
        except Exception:
            logger.exception("a step is not followed any more while its weights are read")
            self._progress = None
            return None


class Streamer:
    """Keeps the held parts of layers in memory and moves a window over the rest, ahead of the computation.

    While a step runs, threads of the streamer's own bring in what comes next, at most ``window_bytes`` ahead
    of it, and send away the layers behind it; between steps the first window of the next pass is brought
    in and stays. So a pass reads what is not held once, and memory has what is held, the window, and one
    and a half layers' streamed parts. What is in memory beyond that at the beginning leaves.

    The ranges are mapped, once in this process, until `close()` has returned. ``shares`` are the parts of
    a pass that each layer takes; without them all take the same. ``rare`` are ranges, among those of each
    layer, that a step may not need, as experts: they are held as the others and dropped as the others, and
    what is not held of them is left to the computation to read.

    Contexts of one model compute side by side: what one of their steps has read serves the others, and what
    the slowest is at is what reading and dropping go by. Every method may be called on any thread.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Range]],
        hold_bytes: int,
        *,
        window_bytes: int = WINDOW_BYTES,
        shares: Sequence[float] | None = None,
        rare: Sequence[Sequence[Range]] = (),
        threads: int = THREADS,
    ) -> None:
        self._layers = [list(layer) for layer in layers]
        self._shares = list(shares) if shares is not None else [1.0] * len(self._layers)
        self._rare = without_overlaps(rare)
        self._window_bytes = window_bytes
        self._changed = threading.Condition()
        self._closed = self._polling = False
        self._steps: list[Step] = []
        self._looked_at = time.monotonic()
        self._totals = StreamStats()
        self._divide(hold_bytes)
        self._threads = [
            threading.Thread(target=self._work, name="shardload-stream", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> StreamStats:
        """What has been done until now."""
        with self._changed:
            return self._totals

    @property
    def held_bytes(self) -> int:
        """What stays in memory, in whole pages."""
        with self._changed:
            return sum(division.held_bytes for division in self._divisions)

    @property
    def streamed_bytes(self) -> int:
        """What is read in each pass, in whole pages, without what is rare."""
        with self._changed:
            return self._course.pass_bytes

    def begin(self, progress: Progress) -> Step:
        """A step begins; ``progress`` says how many passes over the layers it has done, None while unknown.

        It is asked on any thread that calls a method here, and on the streamer's own, until `end()`.
        """
        with self._changed:
            self._check_open()
            step = Step(self._totals.passes, progress)
            self._steps.append(step)
            self._looked_at = time.monotonic()
            self._changed.notify_all()
            return step

    def end(self, step: Step) -> None:
        """A step is computed, or given up: then its progress is less than half a pass."""
        with self._changed:
            if step not in self._steps:  # closed meanwhile
                return
            self._steps.remove(step)
            done = step.passes
            passes = step.first + (1 if done is None else int(done + 0.5))
            self._totals = replace(self._totals, passes=max(passes, self._totals.passes))
            self._changed.notify_all()

    def resize(self, hold_bytes: int) -> None:
        """Hold more or less; what is too much leaves at once, what is missing comes with the next pass."""
        with self._changed:
            self._check_open()
            self._divide(hold_bytes)
            self._changed.notify_all()

    def close(self) -> None:
        """Read and drop no more, and wait for what is under way. What is in memory stays."""
        with self._changed:
            self._closed = True
            self._steps.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise HandleClosed("streamer")

    def _at(self) -> float:
        places = (step.first + (step.passes or 0.0) for step in self._steps)
        return min(places, default=float(self._totals.passes))

    def _divide(self, hold_bytes: int) -> None:
        at = self._at()
        self._divisions = divide(self._layers, hold_bytes)
        self._course = Course(
            self._divisions,
            self._shares,
            window_bytes=self._window_bytes,
            chunk_bytes=CHUNK_BYTES,
            rare=self._rare,
            at=at,
        )
        streamed = [place for division in self._divisions for place in division.streamed]
        # What was in memory of each streamed range when it was last sent away.
        self._left = {place: resident_bytes(place.address, place.length) or 0 for place in streamed}
        # What was missing of what is held, before readahead began to bring in more than it was asked for.
        held = [chunk.place for chunk in self._course.chunks if chunk.held]
        self._missing = {place: missing_bytes(place) for place in held}
        window = self._course.window(at)
        self._surplus = deque(
            Surplus(place, piece) for place in streamed for piece in subtract([place], window)
        )

    def _work(self) -> None:
        while (task := self._next()) is not None:
            course, what = task
            try:
                self._perform(course, what)
            except Exception as error:
                logger.warning("streaming weights failed: %s", error, exc_info=not isinstance(error, OSError))
            finally:
                if isinstance(what, Read):
                    with self._changed:
                        course.finished(what)

    def _next(self) -> tuple[Course, Read | Drop | Surplus] | None:
        """What to do next, when there is something; None ends the thread."""
        with self._changed:
            while not self._closed:
                at, running = self._at(), bool(self._steps)
                self._look(at, running)
                task = self._surplus.popleft() if self._surplus else self._course.next(at, running=running)
                if task is not None:
                    self._changed.notify()  # there may be more, for another thread
                    return self._course, task
                if running and not self._polling:
                    self._polling = True
                    self._changed.wait(POLL_SECONDS)
                    self._polling = False
                else:
                    self._changed.wait()
            return None

    def _look(self, at: float, running: bool) -> None:
        now = time.monotonic()
        if running and self._course.starved(at):
            waited = self._totals.waited_seconds + now - self._looked_at
            self._totals = replace(self._totals, waited_seconds=waited)
        self._looked_at = now

    def _perform(self, course: Course, what: Read | Drop | Surplus) -> None:
        if isinstance(what, Read):
            missing = missing_bytes(what.chunk.place) if what.chunk.held else 0
            bring_in(what.chunk.place)
            if what.chunk.held:
                with self._changed:
                    missing = max(missing, self._missing.pop(what.chunk.place, 0))
                    self._totals = replace(self._totals, read_bytes=self._totals.read_bytes + missing)
        elif isinstance(what, Surplus):
            self._send_away(what.of, what.place)
        else:
            for place in course.divisions[what.layer].streamed:
                self._send_away(place, place)

    def _send_away(self, of: Range, place: Range) -> None:
        before = resident_bytes(place.address, place.length)
        left = evict(place)
        if before is None or left is None:
            return
        with self._changed:
            if of not in self._left:
                return  # another division has been made meanwhile
            whole = place is of
            read_bytes = max(0, before - self._left[of]) if whole else 0
            self._left[of] = left if whole else self._left[of] - (before - left)
            self._totals = replace(
                self._totals,
                read_bytes=self._totals.read_bytes + read_bytes,
                dropped_bytes=self._totals.dropped_bytes + before - left,
            )
