"""The KV cache of one runner: what its slots hold, and how that gets there and away. Lane only."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from shardload.engine.parking import MINIMUM_TOKENS, Found, Parking, State
from shardload.engine.runner import Runner
from shardload.engine.slots import Placement, Slot, SlotTable
from shardload.engine.stats import EngineStats

logger = logging.getLogger("shardload.engine")

# Bringing a parked state costs some thousandth of computing it: even a small part of it is worth the whole.
WORTHWHILE_PART = 16


class Cache:
    """The slots of a runner with their KV, and the parking that it comes from and goes to."""

    __slots__ = ("_name", "_parking", "_runner", "_stats", "_whole_only", "table")

    def __init__(self, name: str, runner: Runner, stats: EngineStats, parking: Parking | None) -> None:
        self._name, self._runner, self._stats, self._parking = name, runner, stats, parking
        self.table = SlotTable(runner.slots)
        # Whether a state is of no use when some of it must be cut off.
        self._whole_only = False

    def empty(self, slot: Slot) -> None:
        """Give a slot's KV up."""
        slot.clear()
        self._runner.forget(slot.index)

    def bring(self, placement: Placement) -> int:
        """Bring the slot's KV to the cached part of the prompt; the number of tokens that it then holds."""
        runner, slot, cached = self._runner, placement.slot, placement.cached_tokens
        try:
            if placement.source is not None:
                self.empty(slot)
                runner.share(placement.source.index, slot.index, cached)
            if runner.forget(slot.index, cached):
                return cached
            self._whole_only = True
        except ValueError:  # a cache of separate parts
            pass
        # A recurrent state cannot go back: it can be continued, not shared in part.
        self.table.can_share = False
        self.empty(slot)
        return 0

    # -- parking

    def usable_tokens(self, placement: Placement) -> int:
        """What ``bring`` is expected to bring."""
        source = placement.source or placement.slot
        cut = self._whole_only and placement.cached_tokens < source.length
        return 0 if cut else placement.cached_tokens

    def find_parked(self, tokens: list[int], placement: Placement) -> Found | None:
        """What is parked of a prompt, where that is worth more than what is in a slot."""
        if self._parking is None:
            return None
        cached_tokens = self.usable_tokens(placement)
        # The last token is always computed: its logits are needed.
        found = self._parking.find(tokens[:-1], kind=self._runner.state_kind, whole=self._whole_only)
        if found is None or found.tokens - cached_tokens < MINIMUM_TOKENS:
            return None
        if (found.tokens - cached_tokens) * WORTHWHILE_PART < len(found.parked.tokens):
            return None
        return found

    def fetch(self, found: Found) -> Future[State | None]:
        """Its state: at once from memory, later from a file."""
        assert self._parking is not None
        return self._parking.fetch(found.parked)

    def fetched(self, fetch: Future[State | None]) -> State | None:
        """What was fetched; None where it was lost."""
        if fetch.cancelled():
            return None
        error = fetch.exception()
        if error is not None:
            logger.error("%s: a parked conversation could not be fetched", self._name, exc_info=error)
            return None
        return fetch.result()

    def restore(self, slot: Slot, found: Found, state: State, used_tokens: int) -> int:
        """Bring a parked state into an idle slot; the tokens of the prompt that then are there, maybe none.

        Idle caches make room for it.
        """
        runner, needed = self._runner, len(found.parked.tokens)
        self.empty(slot)
        while used_tokens + self.table.idle_tokens + needed > runner.ctx_tokens:
            oldest = self.table.oldest_cache()
            if oldest is None:
                break
            self.empty(oldest)
        if not runner.restore(slot.index, state):
            return 0
        if found.tokens < needed and not runner.forget(slot.index, found.tokens):
            self._whole_only = True
            self.empty(slot)
            return 0
        self._stats.restored_total += 1
        self._stats.restored_tokens_total += found.tokens
        return found.tokens

    def idle_slots(self) -> list[Slot]:
        """The idle slots that hold something, the one that holds most first."""
        idle = [slot for slot in self.table.slots if not slot.busy and slot.length]
        return sorted(idle, key=lambda slot: -slot.length)

    def park(self, slot: Slot) -> bool:
        """Save and empty a slot; whether it was idle and held something."""
        if slot.busy or not slot.length:
            return False
        try:
            self._save(slot)
        except Exception:
            logger.exception("%s: a conversation of %d tokens was not saved", self._name, slot.length)
        self.empty(slot)
        return True

    def _save(self, slot: Slot) -> None:
        parking, runner = self._parking, self._runner
        if parking is None or slot.length < MINIMUM_TOKENS:
            return
        tokens, kind = slot.tokens[: slot.length], runner.state_kind
        if parking.covers(tokens, kind=kind, whole=self._whole_only):
            return
        if not parking.accepts(runner.state_bytes(slot.index)):
            logger.debug("%s: no room to park a conversation of %d tokens", self._name, slot.length)
            return
        parking.put(tokens, runner.save(slot.index), kind=kind)
        self._stats.parked_total += 1

    def give_back(self) -> int:
        """Give the memory of an empty cache back to the system; the bytes, 0 where something is in it."""
        if any(slot.busy or slot.length for slot in self.table.slots):
            return 0
        return self._runner.give_back()
