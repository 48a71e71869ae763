"""Which of the waiting sequences starts, in which slot, and with how much of its prompt there. Lane only.

A seeded sequence runs by itself, from an empty cache. A parked conversation is brought back first, and while
it is fetched from the disk others pass it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from shardload.engine.cache import Cache
from shardload.engine.roster import Roster
from shardload.engine.runner import Runner
from shardload.engine.sequence import Sequence, goes_on_below
from shardload.engine.slots import Placement

# Cells kept free for each sequence at admission, so that a new one does not at once drive out another.
HEADROOM_TOKENS = 16
# A prefix that a running sequence is computing is worth waiting for from this length on.
AWAITED_PREFIX_TOKENS = 32


class Admission:
    """Gives slots to the sequences of a roster; ``wake`` has the lane look again, from any thread."""

    def __init__(self, runner: Runner, roster: Roster, cache: Cache, wake: Callable[[], None]) -> None:
        self._runner, self._roster, self._cache = runner, roster, cache
        self._wake = wake

    def admit(self, output_limit: int, reserved: int) -> None:
        """Start whoever can start now; ``reserved`` slots stay free."""
        # One that was paused comes back when its reader has taken half of what it was behind.
        near = goes_on_below(output_limit)
        for sequence in list(self._roster.queue):
            if sequence.stalled and not sequence.may_go_on(near):
                continue
            placement = self._placement(sequence, reserved)
            while placement is None and self._pause_a_stalled_one():
                placement = self._placement(sequence, reserved)
            if placement is None:
                break
            if self._is_worth_waiting(sequence, placement) or self._is_being_fetched(sequence, placement):
                reserved += 1
                continue
            self._roster.queue.remove(sequence)
            try:
                self._start(sequence, placement)
            except Exception as error:
                self._roster.fail(sequence, self._roster.explained(error))
        self._roster.count()

    def _placement(self, sequence: Sequence, reserved: int) -> Placement | None:
        """Where a sequence could start now, if anywhere."""
        running, table = self._roster.running, self._cache.table
        if running and (sequence.solo or running[0].solo):
            return None
        if table.idle_count <= reserved:
            return None
        placement = table.place(sequence.tokens, reuse=not sequence.solo)
        return placement if placement is not None and self._fits(sequence, placement) else None

    def _pause_a_stalled_one(self) -> bool:
        """Take the slot of a sequence whose reader is behind, for one that can use it."""
        for sequence in self._roster.running:
            if sequence.stalled:
                self._roster.pause(sequence)
                return True
        return False

    def _fits(self, sequence: Sequence, placement: Placement) -> bool:
        """Whether the cells suffice for it. What runs alone is always tried."""
        needed = len(sequence.tokens) - placement.shared_tokens
        return not self._roster.running or self._has_cells(needed)

    def _has_cells(self, needed: int) -> bool:
        """Whether so many can be had, idle caches not counted."""
        running = len(self._roster.running)
        headroom = HEADROOM_TOKENS * (running + 1) if running else 0
        return self._roster.used_tokens + needed + headroom <= self._runner.ctx_tokens

    def _is_worth_waiting(self, sequence: Sequence, placement: Placement) -> bool:
        if not self._roster.running:
            return False
        expected = self._cache.table.expected_prefix(sequence.tokens)
        return expected - placement.cached_tokens >= AWAITED_PREFIX_TOKENS

    def _is_being_fetched(self, sequence: Sequence, placement: Placement) -> bool:
        if sequence.solo:
            return False
        if sequence.fetch is None:
            sequence.found = self._cache.find_parked(sequence.tokens, placement)
            if sequence.found is None:
                return False
            sequence.fetch = self._cache.fetch(sequence.found)
            if not sequence.fetch.done():
                sequence.fetch.add_done_callback(lambda _: self._wake())
        return not sequence.fetch.done()

    def _start(self, sequence: Sequence, placement: Placement) -> None:
        request, table = sequence.request, self._cache.table
        if sequence.sampler is None and not request.sampling.takes_the_maximum:
            sequence.sampler = self._runner.sampler(request.sampling, sequence.tokens)
        if sequence.solo:
            for slot in table.slots:
                self._cache.empty(slot)
        cached = self._bring(sequence, placement)
        sequence.slot = table.take(placement, sequence.tokens, cached)
        self._roster.running.append(sequence)
        if sequence.admitted_at is None:
            sequence.admitted_at = perf_counter()
            sequence.cached_tokens = cached

    def _bring(self, sequence: Sequence, placement: Placement) -> int:
        """The tokens of the prompt that are in the slot then."""
        found, fetch = sequence.found, sequence.fetch
        sequence.found = sequence.fetch = None
        if found is not None and fetch is not None and found.tokens > self._cache.usable_tokens(placement):
            state = self._cache.fetched(fetch)
            needed = max(len(found.parked.tokens), len(sequence.tokens))
            if state is not None and self._has_cells(needed):
                return self._cache.restore(placement.slot, found, state, self._roster.used_tokens)
        cached = self._cache.bring(placement)
        if cached and placement.shared_tokens and placement.source is not None:
            sequence.shared_tokens, sequence.shared_from = cached, placement.source.tokens
        return cached
