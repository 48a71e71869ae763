"""The sequences of one engine: who waits, who runs, and how each of them ends. Lane only."""

from __future__ import annotations

import logging
from bisect import insort
from operator import attrgetter
from time import perf_counter
from typing import Literal

from shardload.engine.request import Delta
from shardload.engine.sequence import Sequence
from shardload.engine.slots import Slot, SlotTable
from shardload.engine.stats import EngineStats
from shardload.errors import NativeError, ShardloadError

logger = logging.getLogger("shardload.engine")

Outbox = list[tuple[Sequence, Delta | ShardloadError]]


class Roster:
    """Queued and running sequences; what they produce goes into the lane's ``outbox``."""

    def __init__(self, name: str, slots: SlotTable, stats: EngineStats, outbox: Outbox) -> None:
        self.name, self.outbox, self.stats = name, outbox, stats
        self.queue: list[Sequence] = []
        self.running: list[Sequence] = []
        self._slots = slots

    @property
    def used_tokens(self) -> int:
        """The cells of running sequences, those that they share counted once."""
        running = {id(sequence.tokens) for sequence in self.running}
        # Cells stay with whoever shares them when the one that they were computed for is gone.
        left: dict[int, int] = {}
        own_tokens = 0
        for sequence in self.running:
            own_tokens += len(sequence.tokens) - sequence.shared_tokens
            source = id(sequence.shared_from)
            if sequence.shared_tokens and source not in running:
                left[source] = max(left.get(source, 0), sequence.shared_tokens)
        return own_tokens + sum(left.values())

    def accept(self, sequence: Sequence) -> None:
        """Take a new sequence into the queue."""
        if sequence.cancelled:
            return
        if sequence.completion_limit <= 0:  # nothing was asked for: no decode
            self.finish(sequence, "length")
            return
        self.enqueue(sequence)

    def enqueue(self, sequence: Sequence) -> None:
        """Put a sequence where its arrival places it."""
        insort(self.queue, sequence, key=attrgetter("arrival"))
        self.count()

    def pause(self, sequence: Sequence) -> Slot:
        """Back into the queue; the slot that it had keeps its content until that is needed."""
        logger.debug("%s: paused a sequence of %d tokens", self.name, len(sequence.tokens))
        self.stats.paused_total += 1
        slot = sequence.slot
        assert slot is not None
        self.running.remove(sequence)
        sequence.slot = sequence.shared_from = None
        sequence.shared_tokens = 0
        self._slots.release(slot)
        self.enqueue(sequence)
        return slot

    def finish(self, sequence: Sequence, reason: Literal["stop", "length"]) -> None:
        """End a sequence before its model does."""
        self.outbox.append((sequence, sequence.finish(reason, perf_counter())))
        self.leave(sequence)

    def fail(self, sequence: Sequence, error: ShardloadError) -> None:
        """End a sequence with an error, unless it has ended."""
        if sequence.done:
            return
        self.outbox.append((sequence, error))
        self.leave(sequence)

    def fail_all(self, error: ShardloadError) -> None:
        """End everything with one error."""
        for sequence in [*self.running, *self.queue]:
            self.fail(sequence, error)

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence: its slot is free at once."""
        if sequence.done:
            return
        sequence.done = True
        slot = sequence.slot
        if slot is not None:
            self.running.remove(sequence)
            sequence.slot = None
            self._slots.release(slot)
        elif sequence in self.queue:
            self.queue.remove(sequence)
        sampler, sequence.sampler = sequence.sampler, None
        if sampler is not None:
            sampler.close()
        sequence.found = sequence.fetch = None
        self.count()

    def count(self) -> None:
        self.stats.queued, self.stats.running = len(self.queue), len(self.running)

    def explained(self, error: Exception) -> ShardloadError:
        """The error as its readers get it; one that nobody meant is logged with its traceback."""
        if isinstance(error, ShardloadError):
            logger.warning("%s: %s", self.name, error)
            return error
        logger.error("%s: the engine failed", self.name, exc_info=error)
        failed = NativeError(f"the engine of {self.name!r} failed: {error!r}")
        failed.__cause__ = error
        return failed
