"""Keeping what is open within the budget, whoever waits, and using what is left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardload.library.actions import Actions
from shardload.library.candidates import Rules, holdings
from shardload.library.fitting import least_share_bytes
from shardload.library.holdings import Instance, Weights
from shardload.library.ledger import Ledger
from shardload.library.relief import relieve

TOLERANCE_SHARE = 0.02
"""By how much of the budget models in use may exceed it: predictions of their buffers are not exact."""
GROWTH_SHARE = 0.1
"""A streaming model's share grows by no less than this part of its weights."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The facts that it is kept by."""

    ledger: Ledger
    now: float
    budget_bytes: int
    pinned: Mapping[Instance, str]
    must_measure: Callable[[Actions], bool]
    """Has idle weights measured first, where that was too long ago."""

    def shrink(self, actions: Actions, grace_seconds: float) -> None:
        """Bring what is over the budget back within it.

        Models in use go on as they are for ``grace_seconds`` and take no new requests; then they stream.
        """
        ledger = self.ledger
        over_bytes = self._over_bytes()
        if over_bytes <= 0:
            ledger.over_since = None
            return
        if self.must_measure(actions):
            return
        found = relieve(over_bytes, holdings(ledger, Rules(set(self.pinned))), self.now, partly=True)
        actions.take(ledger, found)
        over_bytes = self._over_bytes()
        if over_bytes <= TOLERANCE_SHARE * self.budget_bytes:
            ledger.over_since = None
            return
        if ledger.over_since is None:
            ledger.over_since = self.now
        if self.now < ledger.over_since + grace_seconds:
            actions.look_again(ledger.over_since + grace_seconds)
        else:
            self._throttle(over_bytes, actions)

    def grow(self, actions: Actions) -> None:
        """Give weights in use what is free: whole weights to those that stream, and second layouts."""
        free_bytes = self.budget_bytes - self.ledger.used_bytes()
        for weights in self._adjustable():
            if weights.limit_bytes is None:
                continue
            whole_bytes = self.ledger.used_bytes(weights) - self.ledger.used_bytes()
            if whole_bytes <= free_bytes:
                actions.resize(weights, None)
                free_bytes -= whole_bytes
            elif free_bytes >= max(GROWTH_SHARE * weights.size_bytes, 1):
                actions.resize(weights, weights.limit_bytes + free_bytes)
                free_bytes = 0
        for weights in self._adjustable():
            if weights.limit_bytes is not None or weights.second_allowed or not weights.second_total_bytes:
                continue
            missing_bytes = weights.second_total_bytes - weights.second_bytes
            if missing_bytes <= free_bytes:
                actions.allow_second(weights, True)
                free_bytes -= max(missing_bytes, 0)

    def _throttle(self, over_bytes: int, actions: Actions) -> None:
        """Let models in use stream, the largest first."""
        for weights in sorted(self._adjustable(), key=lambda weights: -weights.size_bytes):
            if over_bytes <= 0:
                return
            if weights.pinned:
                continue
            present_bytes = weights.resident_bytes
            spare_bytes = present_bytes - least_share_bytes(weights.size_bytes, weights.layer_bytes)
            if spare_bytes > 0:
                actions.resize(weights, present_bytes - min(spare_bytes, over_bytes))
                over_bytes -= min(spare_bytes, over_bytes)

    def _over_bytes(self) -> int:
        return self.ledger.used_bytes() - self.ledger.leaving_bytes() - self.budget_bytes

    def _adjustable(self) -> list[Weights]:
        """Weights in use that may get another limit now."""
        return [
            weights
            for weights in self.ledger.weights.values()
            if weights.state == "open" and weights.active and weights.may_be_resized
        ]
