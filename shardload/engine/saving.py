"""Saving what an engine's slots hold, piece by piece, so that the steps of others go on between."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass

from shardload.engine.slots import Slot
from shardload.engine.workload import Workload

logger = logging.getLogger("shardload.engine")


@dataclass(slots=True)
class Saving:
    """The slots of one workload that are idle when it begins; ``done`` tells the bytes given back. Lane only.

    Those that become idle later are left alone: a busy engine always has another one, and others wait.
    """

    workload: Workload
    done: Future[int]
    give_back: bool
    """Whether the memory of the cache is to go too, where nothing is left in it."""
    _left: list[Slot] | None = None

    def step(self) -> bool:
        """Save one slot; False when there was none, and ``done`` has its result."""
        cache = self.workload.cache
        if self._left is None:
            self._left = cache.idle_slots()
        while self._left:
            try:
                if cache.park(self._left.pop(0)):
                    return True
            except Exception:  # the slot counts as empty: the next one's turn
                logger.exception("%s: a slot was not emptied", self.workload.name)
                return True
        given_bytes = 0
        if self.give_back:
            try:
                given_bytes = cache.give_back()
            except Exception:
                logger.exception("%s: its KV memory was not given back", self.workload.name)
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(given_bytes)
        return False
