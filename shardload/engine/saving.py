"""Saving what an engine's slots hold, piece by piece, so that the steps of others go on between."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass

from shardload.engine.workload import Workload

logger = logging.getLogger("shardload.engine")


@dataclass(frozen=True, slots=True)
class Saving:
    """All idle slots of one workload; ``done`` tells the bytes that were given back. Lane only."""

    workload: Workload
    done: Future[int]
    give_back: bool
    """Whether the memory of the cache is to go too, where nothing is left in it."""

    def step(self) -> bool:
        """Save one slot; False when there was none, and ``done`` has its result."""
        cache = self.workload.cache
        try:
            if cache.park_next():
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
