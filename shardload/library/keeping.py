"""How long idle models stay, and in which state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from shardload.library.holdings import Instance, ServedKey, Weights
from shardload.library.ledger import Ledger

PARK_IDLE_SECONDS = 60.0


@dataclass(slots=True)
class Settled:
    """What was taken out of use; the ledger has noted it, the effects are still to come."""

    closes: list[tuple[Instance, str]] = field(default_factory=list)
    """Instances and why."""
    weights: list[Weights] = field(default_factory=list)
    parks: list[Instance] = field(default_factory=list)


@dataclass(slots=True)
class Keeping:
    """Settles what no request needs; of the manager's event loop."""

    ledger: Ledger
    is_named: Callable[[ServedKey], bool]
    """Whether any name stands for this, or soon will."""
    is_pinned: Callable[[ServedKey], bool]
    park_idle_seconds: float = PARK_IDLE_SECONDS
    """After this time KV states of idle contexts are parked; below 0: only when memory is needed."""

    def settle(self, now: float, *, closing: bool) -> Settled:
        """Take out of use what has no reason to stay, and park what rests."""
        settled = Settled()
        for instance in list(self.ledger.instances.values()):
            if instance.idle:
                self._settle(instance, now, settled, closing=closing)
        for weights in list(self.ledger.weights.values()):
            if self._is_over(weights, now, closing=closing):
                weights.drop_pages = weights.drop_pages or not self._has_name(weights)
                self.ledger.begin_close_weights(weights)
                settled.weights.append(weights)
        return settled

    def next_at(self) -> float:
        """When time alone changes something."""
        times = [math.inf]
        for instance in self.ledger.instances.values():
            if not instance.idle or instance.waiters or self.is_pinned(instance.key[0]):
                continue
            times.append(instance.expires_at)
            if self._may_park(instance):
                times.append(instance.last_used + self.park_idle_seconds)
        unused = (weights for weights in self.ledger.weights.values() if self._is_unused(weights))
        return min([*times, *(weights.keep_until for weights in unused)])

    def unload(self, key: ServedKey) -> None:
        """Have everything that a name stands for closed as soon as its leases end."""
        for instance in self.ledger.served(key):
            if instance.state in ("opening", "open"):
                instance.leaves_when_idle = True
        weights = self.ledger.weights.get(key[0])
        if weights is not None and not weights.instances:
            weights.closes = weights.drop_pages = True

    def is_unloading(self, key: ServedKey) -> bool:
        """Whether weights that were unloaded while no context used them are on their way still."""
        weights = self.ledger.weights.get(key[0])
        return weights is not None and (weights.closes or weights.state == "closing")

    def close(self, instance: Instance, reason: str, settled: Settled, *, drop_pages: bool = False) -> None:
        """Take an instance out of use, and its weights with the last one."""
        self.ledger.begin_close(instance, with_weights=True, drop_pages=drop_pages)
        settled.closes.append((instance, reason))

    def _settle(self, instance: Instance, now: float, settled: Settled, *, closing: bool) -> None:
        if instance.leaves_when_idle:
            self.close(instance, "unloaded", settled, drop_pages=True)
        elif instance.waiters:
            return
        elif closing:
            self.close(instance, "shutting down", settled)
        elif not self.is_named(instance.key[0]):
            self.close(instance, "no name stands for it any more", settled, drop_pages=True)
        elif self.is_pinned(instance.key[0]):
            return
        elif instance.expires_at <= now:
            self.close(instance, "idle", settled)
        elif self._may_park(instance) and instance.last_used + self.park_idle_seconds <= now:
            instance.begin_park()
            settled.parks.append(instance)

    def _may_park(self, instance: Instance) -> bool:
        return self.park_idle_seconds >= 0 and instance.parkable_bytes > 0

    def _is_over(self, weights: Weights, now: float, *, closing: bool) -> bool:
        """Whether weights without instances are to be closed."""
        if weights.closes and not weights.moving and weights.state == "open" and not weights.instances:
            return True
        return self._is_unused(weights) and (
            closing or weights.keep_until <= now or not self._has_name(weights)
        )

    def _is_unused(self, weights: Weights) -> bool:
        there = weights.state == "open" and not weights.moving
        return there and not weights.instances and not self.ledger.is_wanted(weights)

    def _has_name(self, weights: Weights) -> bool:
        return any(self.is_named(key) for key in weights.served)
