"""A time at which to look again."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio


class Alarm:
    """Wakes one task at a time that may be moved while it waits; of one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = math.inf
        self._moved = anyio.Event()

    @property
    def at(self) -> float:
        """When it goes off, on the clock; infinity for never."""
        return self._at

    def set(self, at: float) -> None:
        """Move it."""
        sooner = at < self._at
        self._at = at
        if sooner:
            self._moved.set()

    async def wait(self) -> None:
        """Return at the time, or when it was moved nearer."""
        self._moved = anyio.Event()
        seconds = self._at - self._clock()
        with anyio.move_on_after(seconds if math.isfinite(seconds) else None):
            await self._moved.wait()
