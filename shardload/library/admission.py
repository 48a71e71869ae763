"""Whose turn it is: which waiting models get memory now, and which idle ones leave for them.

The oldest request has the first claim. Others may pass it as long as they fit, until it has waited for
``max_wait_seconds``: from then on nobody passes, and leased models take no new leases, so that their memory
comes free. Requests for one model go together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shardload.errors import AllPinned, InsufficientMemory
from shardload.library.eviction import Candidate, check_fits, plan
from shardload.library.ledger import Instance, Ledger, Waiter, Weights


@dataclass(slots=True)
class Actions:
    """What a turn decided; the ledger has noted it, the effects are still to come."""

    grants: list[tuple[Instance, tuple[Waiter, ...]]] = field(default_factory=list)
    opens: list[Instance] = field(default_factory=list)
    evictions: list[Instance] = field(default_factory=list)
    unused: list[Weights] = field(default_factory=list)
    """Weights to close, whose instances are gone."""
    failures: list[tuple[tuple[Waiter, ...], InsufficientMemory]] = field(default_factory=list)
    measure: bool = False
    reserved_for: Instance | None = None
    """The instance that nobody may pass."""
    next_at: float = math.inf
    """When to decide again, if nothing happens before."""

    def look_again(self, at: float) -> None:
        """Have the next turn at a time at the latest."""
        self.next_at = min(self.next_at, at)


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

    def decide(self) -> Actions:
        """Serve the waiting instances in the order of their oldest requests."""
        actions = Actions()
        waiting = [instance for instance in self.ledger.instances.values() if instance.waits]
        for instance in sorted(waiting, key=lambda instance: instance.oldest):
            if actions.reserved_for is not None and not (instance.active and instance in self.pinned):
                continue
            if self._admit(instance, actions):
                continue
            impatient_at = instance.waiters[0].since + self.max_wait_seconds
            if self.now >= impatient_at:
                actions.reserved_for = instance
            else:
                actions.look_again(impatient_at)
        self._shrink(actions)
        actions.unused = self.ledger.begin_close_unused(
            actions.reserved_for.oldest if actions.reserved_for else math.inf
        )
        return actions

    def _admit(self, instance: Instance, actions: Actions) -> bool:
        """Give an instance its memory, or begin what brings it nearer; False while it waits on."""
        ledger, weights = self.ledger, self.ledger.weights.get(instance.key[0][0])
        if instance.active:
            if not instance.leaves_when_idle:
                actions.grants.append((instance, ledger.take_waiters(instance)))
            return True
        if weights is not None and weights.state == "closing":
            return False
        extra_bytes = ledger.extra_bytes(instance)
        missing_bytes = extra_bytes - (self.budget_bytes - ledger.used_bytes())
        if missing_bytes <= 0:
            self._activate(instance, actions)
            return True
        if self._must_measure(actions):
            return False
        try:
            alone_bytes = ledger.alone_bytes(instance)
            check_fits(instance.entry.name, alone_bytes, self.budget_bytes, self._pinned_bytes(instance))
        except InsufficientMemory as error:
            actions.failures.append((ledger.dismiss_waiters(instance), error))
            ledger.forget_unwanted(instance)
            return True
        self._make_room(instance, missing_bytes - ledger.leaving_bytes(), actions)
        return False

    def _activate(self, instance: Instance, actions: Actions) -> None:
        if instance.state == "open":
            actions.grants.append((instance, self.ledger.take_waiters(instance)))
        else:
            self.ledger.begin_open(instance)
            actions.opens.append(instance)

    def _must_measure(self, actions: Actions) -> bool:
        stale = any(self.is_stale(weights) for weights in self.ledger.idle_weights())
        actions.measure = actions.measure or stale
        return stale

    def _make_room(self, instance: Instance, bytes_to_free: int, actions: Actions) -> None:
        if bytes_to_free <= 0:
            return
        keep = {*self.pinned, instance, *self._older(instance)}
        candidates = self.ledger.candidates(keep, self.min_residency_seconds, instance.oldest)
        found = plan(bytes_to_free, candidates, self.now)
        for victim in found.victims:
            self._evict(victim, actions, until=instance.oldest)
        if found.retry_at is not None:
            actions.look_again(found.retry_at)

    def _older(self, instance: Instance) -> set[Instance]:
        """Instances with requests from before: this one may not take their memory."""
        return {other for other in self.ledger.instances.values() if other.oldest < instance.oldest}

    def _pinned_bytes(self, instance: Instance) -> dict[str, int]:
        """What pinned models beside an instance have in memory; the weights they share count as its own."""
        own = self.ledger.weights.get(instance.key[0][0])
        found: dict[str, int] = {}
        counted: set[Weights] = {own} if own else set()
        for pinned, name in self.pinned.items():
            if pinned is instance or pinned.weights is None:
                continue
            found[name] = found.get(name, 0) + pinned.private_bytes
            if pinned.weights not in counted:
                counted.add(pinned.weights)
                found[name] += pinned.weights.counted_bytes
        return found

    def _shrink(self, actions: Actions) -> None:
        """Bring the ledger back within the budget when an open took more than was predicted."""
        over_bytes = self.ledger.used_bytes() - self.ledger.leaving_bytes() - self.budget_bytes
        if over_bytes <= 0 or self._must_measure(actions):
            return
        candidates = self.ledger.candidates(self.pinned, self.min_residency_seconds)
        found = plan(over_bytes, candidates, self.now)
        for victim in found.victims or sorted(candidates, key=lambda candidate: candidate.last_used):
            self._evict(victim, actions)

    def _evict(self, victim: Candidate, actions: Actions, until: float = math.inf) -> None:
        instance = self.ledger.instances[victim.key]
        self.ledger.begin_close(instance, drop_pages=True, until=until)
        actions.evictions.append(instance)


def renamed(error: InsufficientMemory, name: str) -> InsufficientMemory:
    """The same error for another name of the model: each request raises its own."""
    if isinstance(error, AllPinned):
        return AllPinned(name, error.needed_bytes, error.budget_bytes, error.pinned)
    return InsufficientMemory(name, error.needed_bytes, error.budget_bytes)
