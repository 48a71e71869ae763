"""What is open and what it weighs: plain state and arithmetic, no effects.

An instance is a context on weights. It is *waiting* while requests want it and it has no memory yet,
*opening* from the moment that memory is promised to it, *open*, and *closing* until its memory is back;
it is accounted for in the last three. It is *active* while it opens or is leased: then all of its weights
count. Idle weights count with what of them is resident.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import anyio

from shardload.library.entry import FileKey, ModelEntry, Use, slots_for
from shardload.library.estimate import Prediction
from shardload.library.eviction import Candidate
from shardload.library.lease import Lease, OpenProgress
from shardload.library.opener import InstanceHandle, Residency, WeightsFacts, WeightsHandle

ServedKey = tuple[FileKey, int, int]
"""What names map onto: the file, the size of the context and its slots."""
InstanceKey = tuple[ServedKey, Use]
logger = logging.getLogger("shardload.library")

State = Literal["waiting", "opening", "open", "closing"]


def served_key(entry: ModelEntry) -> ServedKey:
    """What a name stands for in memory."""
    return entry.file_key, entry.ctx_tokens, entry.slots


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for its lease."""

    entry: ModelEntry
    since: float
    serial: int
    """The order of arrival."""
    keep_alive_seconds: float | None
    progress: Callable[[OpenProgress], None] | None
    done: anyio.Event = field(default_factory=anyio.Event)
    lease: Lease | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        self.error = error
        self.done.set()

    def report(self, stage: Literal["waiting", "opening"], fraction: float) -> None:
        """Tell the request how far it is; what its callback raises is its own."""
        if self.progress is None:
            return
        try:
            self.progress(OpenProgress(self.entry.name, stage, fraction))
        except Exception:
            logger.exception("reporting the progress of %s failed", self.entry.name)
            self.progress = None


@dataclass(frozen=True, slots=True)
class PageTotals:
    """What the opens of one file counted together."""

    page_ins: int = 0
    page_outs: int = 0
    waited_seconds: float = 0.0

    def plus(self, facts: WeightsFacts | None) -> PageTotals:
        """With one open more; None adds nothing."""
        if facts is None:
            return self
        return PageTotals(
            self.page_ins + facts.page_ins,
            self.page_outs + facts.page_outs,
            self.waited_seconds + facts.waited_seconds,
        )


@dataclass(slots=True, eq=False)
class Weights:
    """One file in memory, and the instances on it."""

    key: FileKey
    size_bytes: int
    private_bytes: int
    measured: Residency | None = None
    """What of it was in memory when it was last measured."""
    measured_at: float = -math.inf
    """When, if it has not been in use since."""
    uses: int = 0
    """How often it has become idle."""
    drop_pages: bool = False
    claimed: bool = False
    """Whether somebody opens it already."""
    state: Literal["opening", "open", "closing"] = "opening"
    handle: WeightsHandle | None = None
    error: BaseException | None = None
    opened: anyio.Event = field(default_factory=anyio.Event)
    instances: set[Instance] = field(default_factory=set)

    @property
    def active(self) -> bool:
        """Whether all of it may be needed at any moment."""
        return self.state == "opening" or any(instance.active for instance in self.instances)

    @property
    def resident_bytes(self) -> int:
        """What may be in memory now: all of it, unless it was measured since it was last in use."""
        if self.active or self.measured is None or self.measured_at == -math.inf:
            return self.size_bytes
        return min(self.measured.resident_bytes, self.size_bytes)

    @property
    def counted_bytes(self) -> int:
        """What it takes of the budget."""
        return self.private_bytes + self.resident_bytes


@dataclass(slots=True, eq=False)
class Instance:
    """One context, or the wish for one."""

    key: InstanceKey
    entry: ModelEntry
    prediction: Prediction
    keep_alive_seconds: float
    state: State = "waiting"
    weights: Weights | None = None
    handle: InstanceHandle | None = None
    private_bytes: int = 0
    leases: int = 0
    waiters: deque[Waiter] = field(default_factory=deque)
    leaves_when_idle: bool = False
    last_used: float = 0.0
    opened_at: float = 0.0
    open_seconds: float = 0.0
    lease_seconds: float = 1.0
    """How long a lease takes, as a moving average."""
    closed: anyio.Event = field(default_factory=anyio.Event)
    """Set when the memory of the present open is back."""

    @property
    def kind(self) -> Use:
        """What the context is made for."""
        return self.key[1]

    @property
    def slots(self) -> int:
        """How many requests it answers at once."""
        return slots_for(self.entry, self.kind)

    @property
    def active(self) -> bool:
        """Whether it must stay: somebody holds it, or it is being opened."""
        return self.leases > 0 or self.state == "opening"

    @property
    def idle(self) -> bool:
        """Whether it could be closed now."""
        return self.state == "open" and self.leases == 0

    @property
    def waits(self) -> bool:
        """Whether requests wait that the next turn may help."""
        return bool(self.waiters) and self.state in ("waiting", "open")

    @property
    def oldest(self) -> int | float:
        """The order of arrival of the request that waits longest."""
        return self.waiters[0].serial if self.waiters else math.inf

    @property
    def queued(self) -> int:
        """How many requests are more than the slots that there are."""
        return max(self.leases + len(self.waiters) - self.slots, 0)

    @property
    def queue_seconds(self) -> float:
        """How long the queue will take, by the leases of the past."""
        return self.lease_seconds * self.queued / self.slots

    @property
    def expires_at(self) -> float:
        """When an idle instance has been kept for long enough."""
        return math.inf if self.keep_alive_seconds < 0 else self.last_used + self.keep_alive_seconds


class Ledger:
    """All weights and instances, and the bytes that they take."""

    def __init__(self) -> None:
        self.weights: dict[FileKey, Weights] = {}
        self.instances: dict[InstanceKey, Instance] = {}
        self.past: dict[FileKey, PageTotals] = {}
        """What weights counted that are closed by now."""
        self._serials = itertools.count()

    def instance(
        self, entry: ModelEntry, kind: Use, prediction: Prediction, keep_alive_seconds: float
    ) -> Instance:
        """Find the instance that a name stands for, or enter a waiting one."""
        key = (served_key(entry), kind)
        if (found := self.instances.get(key)) is not None:
            return found
        made = Instance(key, entry, prediction, keep_alive_seconds)
        self.instances[key] = made
        return made

    def enqueue(
        self,
        instance: Instance,
        entry: ModelEntry,
        now: float,
        keep_alive_seconds: float | None,
        progress: Callable[[OpenProgress], None] | None,
    ) -> Waiter:
        """Let a request wait for an instance."""
        waiter = Waiter(entry, now, next(self._serials), keep_alive_seconds, progress)
        instance.waiters.append(waiter)
        return waiter

    def served(self, key: ServedKey) -> Iterator[Instance]:
        """The instances of every kind that a name stands for."""
        return (instance for instance in self.instances.values() if instance.key[0] == key)

    def used_bytes(self) -> int:
        """What counts against the budget."""
        return sum(weights.counted_bytes for weights in self.weights.values()) + sum(
            instance.private_bytes for instance in self.instances.values()
        )

    def leaving_bytes(self) -> int:
        """The part of `used_bytes` that closes which have begun will give back."""
        return sum(
            weights.counted_bytes for weights in self.weights.values() if weights.state == "closing"
        ) + sum(instance.private_bytes for instance in self.instances.values() if instance.state == "closing")

    def extra_bytes(self, instance: Instance) -> int:
        """What activating an instance adds to `used_bytes`."""
        prediction, weights = instance.prediction, self.weights.get(instance.key[0][0])
        extra = 0 if instance.state == "open" else prediction.kv_bytes + prediction.compute_bytes
        if weights is None:
            return extra + prediction.weights_bytes + prediction.vocabulary_bytes
        return extra + weights.size_bytes - weights.resident_bytes

    def alone_bytes(self, instance: Instance) -> int:
        """What an active instance takes with everything else gone."""
        if instance.state == "open" and instance.weights is not None:
            return instance.private_bytes + instance.weights.private_bytes + instance.weights.size_bytes
        return instance.prediction.weights_bytes + instance.prediction.private_bytes

    def begin_open(self, instance: Instance) -> None:
        """Promise memory to a waiting instance."""
        prediction, key = instance.prediction, instance.key[0][0]
        weights = self.weights.get(key)
        if weights is None:
            weights = Weights(key, prediction.weights_bytes, prediction.vocabulary_bytes)
            self.weights[key] = weights
        weights.instances.add(instance)
        instance.state, instance.weights = "opening", weights
        instance.private_bytes = prediction.kv_bytes + prediction.compute_bytes
        instance.closed = anyio.Event()

    def finish_open(
        self, instance: Instance, handle: InstanceHandle, now: float, open_seconds: float
    ) -> None:
        """Note an open that worked, with what it took in place of what was predicted."""
        instance.state, instance.handle = "open", handle
        instance.private_bytes = handle.private_bytes
        instance.opened_at = instance.last_used = now
        instance.open_seconds = open_seconds

    def fail_weights(self, weights: Weights, error: BaseException) -> None:
        """Note that a file did not open; those who wait for it see the error."""
        weights.error = error
        if self.weights.get(weights.key) is weights:
            del self.weights[weights.key]
        weights.opened.set()

    def finish_weights(self, weights: Weights) -> None:
        """Note that weights are closed and their memory is back."""
        if self.weights.get(weights.key) is weights:
            del self.weights[weights.key]

    def note_totals(self, weights: Weights) -> None:
        """Keep what weights have counted, before they are closed."""
        if weights.handle is not None:
            self.past[weights.key] = self.page_totals(weights.key).plus(weights.handle.facts)

    def page_totals(self, key: FileKey) -> PageTotals:
        """What the closed opens of a file counted."""
        return self.past.get(key, PageTotals())

    def release(self, instance: Instance, now: float) -> None:
        """Count one lease less."""
        instance.leases -= 1
        instance.last_used = now
        weights = instance.weights
        if weights is not None and not weights.active:
            weights.measured_at = -math.inf
            weights.uses += 1

    def take_waiters(self, instance: Instance) -> tuple[Waiter, ...]:
        """Lease an active or open instance to everybody who waits for it."""
        waiters = self.dismiss_waiters(instance)
        instance.leases += len(waiters)
        return waiters

    def dismiss_waiters(self, instance: Instance) -> tuple[Waiter, ...]:
        """Take everybody who waits out of the queue."""
        waiters = tuple(instance.waiters)
        instance.waiters.clear()
        return waiters

    def begin_close(self, instance: Instance, *, drop_pages: bool, until: float = math.inf) -> None:
        """Take an idle instance out of use, and its weights unless somebody else needs them.

        Requests that arrived after ``until`` do not count as somebody.
        """
        instance.state = "closing"
        weights = instance.weights
        if weights is None:
            return
        weights.drop_pages = drop_pages
        if all(other.state == "closing" for other in weights.instances) and not self._wanted(weights, until):
            weights.state = "closing"

    def finish_close(self, instance: Instance) -> None:
        """Note that the memory of an instance is back, or was not got.

        Requests that came meanwhile wait for a new open.
        """
        if instance.weights is not None:
            instance.weights.instances.discard(instance)
        instance.state, instance.weights, instance.handle = "waiting", None, None
        instance.private_bytes, instance.leaves_when_idle = 0, False
        self.forget_unwanted(instance)

    def forget_unwanted(self, instance: Instance) -> None:
        """Drop a waiting instance that nobody waits for any more."""
        if instance.state == "waiting" and not instance.waiters:
            self.instances.pop(instance.key, None)

    def begin_close_unused(self, until: float) -> list[Weights]:
        """Take weights out of use that lost their instances and that no request from before needs."""
        unused = [
            weights
            for weights in self.weights.values()
            if weights.state == "open" and not weights.instances and not self._wanted(weights, until)
        ]
        for weights in unused:
            weights.state = "closing"
        return unused

    def _wanted(self, weights: Weights, until: float) -> bool:
        """Whether a waiting instance will use them, for a request that arrived until then."""
        return any(
            instance.key[0][0] == weights.key and instance.state == "waiting" and instance.oldest <= until
            for instance in self.instances.values()
            if instance.waiters
        )

    def idle_weights(self) -> list[Weights]:
        """Open weights whose residency decides what they count."""
        return [
            weights for weights in self.weights.values() if weights.state == "open" and not weights.active
        ]

    def candidates(
        self, keep: Iterable[Instance], min_residency_seconds: float, until: float = math.inf
    ) -> list[Candidate]:
        """The idle instances that may leave for a request that arrived at ``until``."""
        kept = set(keep)
        return [
            _candidate(
                instance, instance.weights, min_residency_seconds, self._wanted(instance.weights, until)
            )
            for instance in self.instances.values()
            if instance.idle and instance not in kept and instance.weights is not None
        ]


def _candidate(instance: Instance, weights: Weights, min_residency_seconds: float, wanted: bool) -> Candidate:
    holders = sum(1 for other in weights.instances if other.state != "closing")
    return Candidate(
        key=instance.key,
        weights=weights.key,
        private_bytes=instance.private_bytes,
        weights_bytes=weights.counted_bytes,
        weights_instances=holders + wanted,
        last_used=instance.last_used,
        # Worth its open: what took long to bring in stays for at least as long.
        stays_until=instance.opened_at + min(instance.open_seconds, min_residency_seconds),
        reopen_seconds=instance.open_seconds,
    )
