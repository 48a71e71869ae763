"""How many bytes all models together may have in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from shardload.config import Config
from shardload.memory import available_bytes

DEFAULT_SHARE = 0.8
RECOVERY_SECONDS = 30.0
"""How long after pressure from outside half of what was given up is taken again."""
RECOVERY_STEPS = 4
"""After so many halves nothing is held back any more."""


def budget_bytes(config: Config) -> int:
    """The configured budget, or 80 % of what is available now: to this process, within its control groups."""
    return config.memory.budget or int(available_bytes() * DEFAULT_SHARE)


class Budget:
    """The bytes that were configured, less what others on the machine need for a while.

    ``parked_bytes`` tells what conversations take that wait in memory: models do without it.
    """

    def __init__(
        self,
        configured: int | Callable[[], int],
        recovery_seconds: float = RECOVERY_SECONDS,
        parked_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.configured = configured
        self._parked_bytes = parked_bytes
        self._recovery_seconds = recovery_seconds
        self._withheld_bytes, self._since = 0, -math.inf

    @property
    def configured_bytes(self) -> int:
        """What there is for models without pressure."""
        configured = self.configured() if callable(self.configured) else self.configured
        return max(configured - self._parked_bytes(), 0)

    def bytes_at(self, now: float) -> int:
        """What there is at a time."""
        return max(self.configured_bytes - self._withheld_at(now), 0)

    def is_lowered(self, now: float) -> bool:
        """Whether something is withheld at a time."""
        return self._withheld_at(now) > 0

    def lower(self, now: float, to_bytes: int) -> None:
        """Withhold what is more than this, for a while."""
        self._withheld_bytes = max(self.configured_bytes - max(to_bytes, 0), self._withheld_at(now))
        self._since = now

    def next_change(self, now: float) -> float:
        """When there will be more; infinity for never."""
        if not self.is_lowered(now):
            return math.inf
        return self._since + (self._steps(now) + 1) * self._recovery_seconds

    def _steps(self, now: float) -> int:
        # Half a millionth more: a time that was reckoned as the end of a step is not before it.
        return math.floor((now - self._since) / self._recovery_seconds + 5e-7)

    def _withheld_at(self, now: float) -> int:
        if self._withheld_bytes <= 0 or self._steps(now) >= RECOVERY_STEPS:
            return 0
        return self._withheld_bytes >> self._steps(now)
