"""How much of each file is in memory: measured beside the event loop, and believed for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shardload.library.catalog import Catalog
from shardload.library.effects import Effects, Start
from shardload.library.entry import FileKey, ModelEntry
from shardload.library.holdings import Weights
from shardload.library.ledger import Ledger
from shardload.library.opener import Opener

logger = logging.getLogger("shardload.library")

MEASURE_SECONDS = 1.0
"""How long a measurement is believed."""
REST_FACTOR = 20.0
"""A catalog of thousands of files is measured for at most one part in this many of the time."""


class Measuring:
    """Keeps the figures young while somebody looks at them; of the manager's event loop."""

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        opener: Opener,
        effects: Effects,
        *,
        clock: Callable[[], float],
        start: Start,
        turn: Callable[[], None],
    ) -> None:
        self._ledger, self._catalog, self._opener, self._effects = ledger, catalog, opener, effects
        self._clock, self._start, self._turn = clock, start, turn
        self._measuring = self._measuring_closed = False
        self._closed: dict[FileKey, int | None] = {}
        self._closed_until = -1.0

    def is_young(self, weights: Weights) -> bool:
        """Whether what was measured of open weights is to be believed."""
        return self._clock() - weights.measured_at <= MEASURE_SECONDS

    def closed_bytes(self, entry: ModelEntry) -> int | None:
        """What the system holds of a file that is not open, as last measured; 0 before that."""
        return self._closed.get(entry.file_key, 0)

    def refresh(self) -> None:
        """Begin to measure whatever is out of date."""
        if not all(self.is_young(weights) for weights in self._ledger.weights.values()):
            self.soon()
        if not self._measuring_closed and self._clock() > self._closed_until:
            self._measuring_closed = True
            self._start(self._measure_closed)

    def soon(self) -> None:
        """Begin to measure the open weights, unless that is being done."""
        if not self._measuring:
            self._measuring = True
            self._start(self._measure)

    async def now(self) -> None:
        """Measure everything and wait for it."""
        await self._measure_closed()
        await self._effects.measure()
        self._turn()

    async def _measure(self) -> None:
        try:
            await self._effects.measure()
        finally:
            self._measuring = False
        self._turn()

    async def _measure_closed(self) -> None:
        # A file may be closed when somebody asks, and open now, and the other way round: all are measured.
        files = {entry.file_key: entry.paths for entry in self._catalog.entries()}
        began = time.perf_counter()
        try:
            counts = await self._opener.cached_bytes(list(files.values()))
            self._closed = dict(zip(files, counts, strict=True))
        except Exception:
            logger.exception("measuring what is in memory of closed models failed")
        finally:
            self._measuring_closed = False
        rest_seconds = max(MEASURE_SECONDS, REST_FACTOR * (time.perf_counter() - began))
        self._closed_until = self._clock() + rest_seconds
