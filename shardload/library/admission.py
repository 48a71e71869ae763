"""Whose turn it is: which waiting models get memory now, and what leaves memory for them.

The oldest request has the first claim. Others may pass it as long as they fit, until it has waited for
``max_wait_seconds``: from then on nobody passes, and leased models take no new leases, so that their memory
comes free. Requests for one model go together. A model that does not fit beside the pinned ones streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardload.errors import InsufficientMemory
from shardload.library.actions import Actions
from shardload.library.balance import Balance
from shardload.library.candidates import Rules, holdings
from shardload.library.fitting import least_share_bytes, must_stream
from shardload.library.holdings import Instance, Weights
from shardload.library.ledger import Ledger
from shardload.library.relief import Holding, relieve

RESIZE_SHARE = 0.1
"""A streaming model's share is changed for no less than this part of it."""
SLACK_PART, SLACK_GRAIN_BYTES = 64, 2**20
"""So much of the budget is freed beyond what is wanted, in whole grains, where no context has to close for
it: not all that is sent away leaves, and a second round takes as long as the first."""
TRUST_SECONDS = 10.0
"""For how long weights that were seen in memory are taken to be there."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The facts that a turn is decided on."""

    ledger: Ledger
    now: float
    budget_bytes: int
    pinned: Mapping[Instance, str]
    """Pinned instances and the name that pins each."""
    max_wait_seconds: float
    min_residency_seconds: float
    is_stale: Callable[[Weights], bool]
    """Whether the residency of idle weights should be measured before anything leaves."""
    full_budget_bytes: int | None = None
    """The budget without pressure from outside, where there is some."""
    recovers_at: float = 0.0
    """When there will be more again, under pressure."""

    def decide(self) -> Actions:
        """Serve the waiting instances in the order of their oldest requests."""
        actions = Actions()
        for instance in sorted(self.ledger.instances.values(), key=lambda instance: instance.oldest):
            if not instance.waits:
                continue  # nobody waits for it, or it has begun to leave for an older request
            if actions.reserved_for is not None and not (instance.active and instance in self.pinned):
                continue
            if self._admit(instance, actions):
                continue
            impatient_at = instance.waiters[0].since + self.max_wait_seconds
            if self.now >= impatient_at:
                actions.reserved_for = instance
            else:
                actions.look_again(impatient_at)
        balance = Balance(self.ledger, self.now, self.budget_bytes, self.pinned, self._must_measure)
        grace_seconds = self.max_wait_seconds if self.full_budget_bytes is None else 0.0
        balance.shrink(actions, grace_seconds)
        if not any(instance.waits for instance in self.ledger.instances.values()):
            balance.grow(actions)
        return actions

    def _admit(self, instance: Instance, actions: Actions) -> bool:
        """Give an instance its memory, or begin what brings it nearer; False while it waits on."""
        ledger, weights = self.ledger, self.ledger.weights.get(instance.file)
        if instance.active:
            if instance.leaves_when_idle:
                return True
            if self._is_drained(instance):
                return False
            actions.grants.append((instance, ledger.lend(instance)))
            return True
        if weights is not None and (weights.state == "closing" or weights.closes or weights.moving):
            return False
        whole = weights is None or weights.active or weights.limit_bytes is None
        if whole and self._missing_bytes(instance, None) <= 0:
            # As it is, without looking whether it would fit beside everything that is pinned.
            return self._activate(instance, None, actions)
        try:
            streams = self._must_stream(instance, self.budget_bytes)
        except InsufficientMemory as error:
            return self._refuse(instance, error, actions)
        if streams and (weights is None or not weights.active):
            return self._admit_streaming(instance, actions)
        missing_bytes = self._missing_bytes(instance, None)
        if missing_bytes <= 0:
            return self._activate(instance, None, actions)
        if not self._must_measure(actions):
            self._make_room(instance, missing_bytes - ledger.leaving_bytes(), actions)
        return False

    def _admit_streaming(self, instance: Instance, actions: Actions) -> bool:
        """Give a model that does not fit what idle ones can spare, and at least what it cannot do without."""
        ledger, weights = self.ledger, self.ledger.weights.get(instance.file)
        if self._must_measure(actions):
            return False
        size_bytes, least_bytes = ledger.size_bytes(instance), self._least_bytes(instance)
        if ledger.leaving_bytes() > 0:
            return False
        wanted_bytes = self._missing_bytes(instance, size_bytes)
        gentle = relieve(wanted_bytes, self._holdings(instance), self.now, gently=True, partly=True)
        if gentle.freed_bytes:
            actions.take(ledger, gentle)
            return False
        missing_bytes = self._missing_bytes(instance, least_bytes)
        if missing_bytes > 0:
            self._make_room(instance, missing_bytes, actions)
            return False
        limit_bytes = min(least_bytes - missing_bytes, size_bytes)
        present_bytes = weights.limit_bytes if weights is not None else None
        if present_bytes is not None and (1 - RESIZE_SHARE) * limit_bytes <= present_bytes <= limit_bytes:
            limit_bytes = present_bytes
        return self._activate(instance, limit_bytes, actions)

    def _activate(self, instance: Instance, limit_bytes: int | None, actions: Actions) -> bool:
        """Promise memory that is there; False while weights that are open change their share of it."""
        ledger, weights = self.ledger, self.ledger.weights.get(instance.file)
        if weights is not None and not weights.active:
            if weights.limit_bytes != limit_bytes:
                if weights.may_be_resized:
                    actions.resize(weights, limit_bytes)
                else:  # it was tried and failed: they are opened anew within the limit
                    actions.evict(ledger, weights)
                return False
            self._wake(weights, instance, actions)
        if instance.state == "open":
            actions.grants.append((instance, ledger.lend(instance)))
        else:
            ledger.begin_open(instance, limit_bytes)
            actions.opens.append(instance)
        return True

    def _wake(self, weights: Weights, instance: Instance, actions: Actions) -> None:
        """Bring back what idle weights lost, and let prompts have the second layout where there is room."""
        measured = weights.measured
        whole = measured is not None and measured.resident_bytes >= weights.size_bytes
        if weights.limit_bytes is None and not (whole and self.now - weights.seen_at <= TRUST_SECONDS):
            actions.bring_backs.append(weights)
        second_bytes = weights.second_total_bytes if weights.limit_bytes is None else 0
        if measured is not None and weights.is_measured:
            weights.granted_second_bytes = measured.second_bytes
        missing_bytes = self._missing_bytes(instance, weights.limit_bytes)
        missing_bytes += second_bytes - weights.promised_second_bytes
        actions.allow_second(weights, second_bytes > 0 and missing_bytes <= 0)

    def _missing_bytes(self, instance: Instance, limit_bytes: int | None) -> int:
        free_bytes = self.budget_bytes - self.ledger.used_bytes()
        return self.ledger.extra_bytes(instance, limit_bytes) - free_bytes

    def _least_bytes(self, instance: Instance) -> int:
        return least_share_bytes(self.ledger.size_bytes(instance), instance.prediction.layer_bytes)

    def _must_stream(self, instance: Instance, budget_bytes: int) -> bool:
        ledger = self.ledger
        return must_stream(
            instance.entry.name,
            ledger.size_bytes(instance),
            ledger.fixed_bytes(instance),
            self._least_bytes(instance),
            budget_bytes,
            ledger.pinned_bytes(self.pinned.items(), instance),
        )

    def _refuse(self, instance: Instance, error: InsufficientMemory, actions: Actions) -> bool:
        """Fail those who wait, unless there will be more memory when pressure from outside ends."""
        if self.full_budget_bytes is not None:
            try:
                self._must_stream(instance, self.full_budget_bytes)
                actions.look_again(self.recovers_at)
                return False
            except InsufficientMemory as lasting:
                error = lasting
        actions.failures.append((self.ledger.dismiss_waiters(instance), error))
        self.ledger.forget_unwanted(instance)
        return True

    def _is_drained(self, instance: Instance) -> bool:
        """Whether a model in use takes no more requests, because models in use take more than there is."""
        return self.ledger.over_since is not None and instance not in self.pinned

    def _must_measure(self, actions: Actions) -> bool:
        idle = (
            weights
            for weights in self.ledger.weights.values()
            if weights.state == "open" and not weights.active
        )
        stale = any(self.is_stale(weights) for weights in idle)
        actions.measure = actions.measure or stale
        return stale

    def _make_room(self, instance: Instance, wanted_bytes: int, actions: Actions) -> None:
        if wanted_bytes <= 0:
            return
        there = self._holdings(instance)
        slack_bytes = self.budget_bytes // SLACK_PART // SLACK_GRAIN_BYTES * SLACK_GRAIN_BYTES
        found = relieve(wanted_bytes + slack_bytes, there, self.now, gently=True)
        if not found.freed_bytes:
            found = relieve(wanted_bytes, there, self.now)
        actions.take(self.ledger, found)
        if found.retry_at is not None:
            actions.look_again(found.retry_at)
        elif not found.freed_bytes:
            self._start_over(instance, actions)

    def _start_over(self, instance: Instance, actions: Actions) -> None:
        """Close the instance's own weights if nothing but pages of theirs that stay is in its way."""
        weights = self.ledger.weights.get(instance.file)
        if weights is None or weights.active or self.ledger.leaving_bytes() > 0:
            return
        if weights.stuck_bytes + weights.stuck_second_bytes > 0:
            actions.evict(self.ledger, weights)

    def _holdings(self, instance: Instance) -> list[Holding]:
        """What may leave for an instance; with requests from before, models may not be taken from."""
        older = {other for other in self.ledger.instances.values() if other.oldest < instance.oldest}
        keep = {*self.pinned, instance, *older}
        rules = Rules(keep, until=instance.oldest, min_residency_seconds=self.min_residency_seconds)
        return holdings(self.ledger, rules)
