"""What is open and what it weighs: plain state and arithmetic, no effects.

An instance is a context on weights. It is *waiting* while requests want it and it has no memory yet,
*opening* from the moment that memory is promised to it, *open*, and *closing* until its memory is back;
it is accounted for in the last three. It is *active* while it opens or is leased: then all of its weights
count, or what they may have while they stream. Idle weights count with what of them is resident. Memory that
several weights use counts once: of idle weights only what those that count whole do not use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import anyio

from shardload.library.entry import FileKey, ModelEntry, Use
from shardload.library.estimate import Prediction
from shardload.library.holdings import (
    Instance,
    InstanceKey,
    ServedKey,
    Totals,
    Waiter,
    Weights,
    served_key,
)
from shardload.library.lease import OpenProgress
from shardload.library.opener import InstanceHandle, Residency, WeightsHandle
from shardload.library.sharing import Groups, beside_bytes, groups, sharers, united_bytes


class Ledger:
    """All weights and instances, and the bytes that they take."""

    def __init__(self) -> None:
        self.weights: dict[FileKey, Weights] = {}
        self.instances: dict[InstanceKey, Instance] = {}
        self.past: dict[FileKey, Totals] = {}
        """What weights and engines counted that are closed by now."""
        self.over_since: float | None = None
        """Since when models in use take more than there is."""
        self._serials = itertools.count()
        self._groups: Groups[Weights] | None = None

    # -- who there is

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

    def by_heat(self) -> list[Weights]:
        """Open weights, those that will leave last first: memory that several use is the first one's."""
        found = [weights for weights in self.weights.values() if weights.state == "open"]
        return sorted(
            found,
            key=lambda weights: (weights.closes, not weights.active, not weights.pinned, -weights.last_used),
        )

    def is_wanted(self, weights: Weights, until: float = math.inf) -> bool:
        """Whether a waiting instance will use them, for a request that arrived until then."""
        return any(
            instance.file == weights.key and instance.state == "waiting" and instance.oldest <= until
            for instance in self.instances.values()
            if instance.waiters
        )

    # -- what it weighs

    @property
    def groups(self) -> Groups[Weights]:
        """The places of all open weights, by who uses them."""
        if self._groups is None:
            self._groups = groups({weights: weights.places for weights in self.weights.values()})
        return self._groups

    def used_bytes(self, active: Weights | None = None, limit_bytes: int | None = None) -> int:
        """What counts against the budget; as it would be with some weights active, within a limit."""
        total = sum(instance.private_bytes for instance in self.instances.values())
        whole: set[Weights] = set()
        measured: list[Weights] = []
        for weights in self.weights.values():
            total += weights.private_bytes
            if weights.is_measured and weights is not active:
                total += weights.second_bytes
                measured.append(weights)
                continue
            limit = limit_bytes if weights is active else weights.limit_bytes
            total += weights.promised_second_bytes
            if limit is not None:
                total += min(limit, weights.size_bytes)
            elif weights.places:
                whole.add(weights)
            else:
                total += weights.size_bytes
        beside = beside_bytes(self.groups, whole, measured)
        total += sum(_resident_bytes(weights, beside[weights]) for weights in measured)
        return total + united_bytes(self.groups, whole)

    def leaving_bytes(self) -> int:
        """The part of `used_bytes` that effects which have begun will give back."""
        total = 0
        for instance in self.instances.values():
            total += instance.private_bytes if instance.state == "closing" else instance.parking_bytes
        for weights in self.weights.values():
            if weights.state == "closing" or weights.closes:
                total += self.own_bytes(weights)
            else:
                total += weights.leaving_bytes
        return total

    def own_bytes(self, weights: Weights) -> int:
        """What comes back when weights are closed."""
        if weights.is_measured or not weights.places or weights.limit_bytes is not None:
            return weights.counted_bytes
        alone = self.groups.get(frozenset((weights,)), 0)
        return weights.private_bytes + weights.second_bytes + alone

    def extra_bytes(self, instance: Instance, limit_bytes: int | None = None) -> int:
        """What activating an instance adds to `used_bytes`, with its weights whole or within a limit."""
        prediction, weights = instance.prediction, self.weights.get(instance.file)
        extra = prediction.context_bytes
        if instance.state == "open":
            extra = instance.parked_bytes
        if weights is None:
            weights_bytes = prediction.weights_bytes
            if limit_bytes is not None:
                weights_bytes = min(weights_bytes, limit_bytes)
            elif places := prediction.places:
                weights_bytes = _rest_bytes(prediction, places) + self._added_bytes(places)
            return extra + weights_bytes + prediction.vocabulary_bytes
        if weights.active:
            limit_bytes = weights.limit_bytes
        return extra + self.used_bytes(weights, limit_bytes) - self.used_bytes()

    def _added_bytes(self, places: Mapping[Hashable, int]) -> int:
        """What counts more when weights that are not open yet use places."""
        measured = [weights for weights in self.weights.values() if weights.is_measured and weights.places]
        whole = {
            weights
            for weights in self.weights.values()
            if not weights.is_measured and weights.limit_bytes is None
        }
        new = dict(places)
        for weights in whole:
            _take(new, weights)
        added = sum(new.values())
        for weights, beside in beside_bytes(self.groups, whole, measured).items():
            left = beside - sum(new[place] for place in new.keys() & weights.places.keys())
            added -= _resident_bytes(weights, beside) - _resident_bytes(weights, left)
        return added

    def fixed_bytes(self, instance: Instance) -> int:
        """What an active instance takes beside the mapped bytes of its weights."""
        prediction, weights = instance.prediction, self.weights.get(instance.file)
        context = prediction.context_bytes
        if instance.state == "open":
            context = instance.private_bytes + instance.parked_bytes
        return context + (prediction.vocabulary_bytes if weights is None else weights.private_bytes)

    def size_bytes(self, instance: Instance) -> int:
        """The mapped bytes that each step of an instance touches."""
        weights = self.weights.get(instance.file)
        return instance.prediction.weights_bytes if weights is None else weights.size_bytes

    def pinned_bytes(self, pinned: Iterable[tuple[Instance, str]], beside: Instance) -> dict[str, int]:
        """What pinned models have in memory beside an instance; what they share with it is its own."""
        own = self.weights.get(beside.file)
        counted: set[Weights] = {own} if own else set()
        foreseen = {} if own else dict(beside.prediction.places)
        found: dict[str, int] = {}
        for instance, name in pinned:
            if instance is beside or instance.weights is None:
                continue
            found[name] = found.get(name, 0) + instance.private_bytes + instance.parked_bytes
            weights = instance.weights
            if weights not in counted:
                before = united_bytes(self.groups, counted)
                counted.add(weights)
                added = united_bytes(self.groups, counted) - before if weights.places else weights.size_bytes
                added -= _take(foreseen, weights)
                limit = weights.limit_bytes
                found[name] += weights.private_bytes + (added if limit is None else min(added, limit))
        return found

    # -- weights

    def note_facts(self, weights: Weights) -> None:
        """Take over what open weights tell of themselves."""
        if weights.handle is None:
            return
        facts = weights.handle.facts
        weights.private_bytes = facts.private_bytes
        if facts.places != weights.places:
            weights.places = dict(facts.places)
            self._groups = None
        if weights.places:
            weights.size_bytes = sum(weights.places.values())
        weights.second_total_bytes = facts.second_bytes
        if weights.second_allowed:
            weights.granted_second_bytes = facts.second_bytes

    def note_measured(self, weights: Weights, uses: int, residency: Residency | None, now: float) -> None:
        """Take over a measurement, which is of now unless the weights have been used since it began."""
        weights.measured, weights.seen_at = residency, now
        if weights.uses == uses:
            weights.measured_at = now
        self.note_facts(weights)

    def finish_open_weights(
        self, weights: Weights, handle: WeightsHandle, now: float, open_seconds: float
    ) -> None:
        """Note that a file is open."""
        weights.handle, weights.state = handle, "open"
        weights.opened_at = weights.last_used = now
        weights.open_seconds = open_seconds
        self.note_facts(weights)
        weights.opened.set()

    def fail_weights(self, weights: Weights, error: BaseException) -> None:
        """Note that a file did not open; those who wait for it see the error."""
        weights.error = error
        self._forget(weights)
        weights.opened.set()

    def begin_close_weights(self, weights: Weights) -> None:
        """Take weights without instances out of use."""
        if weights.handle is not None:
            self.past[weights.key] = self.past_totals(weights.key).plus_pages(weights.handle.facts)
        weights.state = "closing"

    def finish_close_weights(self, weights: Weights) -> None:
        """Note that weights are closed and their memory is back."""
        # What they shared counted as theirs: the others have to be looked at anew.
        for other in sharers(self.groups, weights):
            other.forget_measurement()
        self._forget(weights)

    def _forget(self, weights: Weights) -> None:
        if self.weights.get(weights.key) is weights:
            del self.weights[weights.key]
        self._groups = None

    def past_totals(self, key: FileKey) -> Totals:
        """What the closed opens of a file counted."""
        return self.past.get(key, Totals())

    # -- instances

    def begin_open(self, instance: Instance, limit_bytes: int | None = None) -> None:
        """Promise memory to a waiting instance; ``limit_bytes`` is for weights that are not open yet."""
        assert instance.state == "waiting", "what is open or leaves is not opened"
        prediction, key = instance.prediction, instance.file
        weights = self.weights.get(key)
        if weights is None:
            weights = Weights(
                key,
                instance.entry.name,
                prediction.weights_bytes,
                prediction.vocabulary_bytes,
                prediction.layer_bytes,
                limit_bytes=limit_bytes,
                places=_all_places(prediction, prediction.places, key),
            )
            self.weights[key] = weights
            self._groups = None
        self._begin_use(weights)
        weights.instances.add(instance)
        weights.served.add(instance.key[0])
        instance.state, instance.weights = "opening", weights
        instance.private_bytes = prediction.context_bytes
        instance.closed = anyio.Event()

    def finish_open(
        self, instance: Instance, handle: InstanceHandle, now: float, open_seconds: float
    ) -> None:
        """Note an open that worked, with what it took in place of what was predicted."""
        instance.state, instance.handle = "open", handle
        instance.private_bytes, instance.parked_bytes = handle.private_bytes, 0
        instance.opened_at = instance.last_used = now
        instance.open_seconds = open_seconds

    def lend(self, instance: Instance) -> tuple[Waiter, ...]:
        """Lease an active or open instance to everybody who waits for it."""
        if instance.weights is not None:
            self._begin_use(instance.weights)
        if not instance.active:
            instance.private_bytes += instance.parked_bytes
            instance.parked_bytes, instance.stays_put = 0, False
        instance.uses += 1
        waiters = self.dismiss_waiters(instance)
        instance.leases += len(waiters)
        return waiters

    def release(self, instance: Instance, now: float) -> None:
        """Count one lease less."""
        instance.leases -= 1
        instance.last_used = now
        weights = instance.weights
        if weights is not None:
            weights.last_used = max(weights.last_used, now)
            if not weights.active:
                weights.forget_measurement()

    def _begin_use(self, weights: Weights) -> None:
        if not weights.active or weights.state == "opening":
            weights.stuck_bytes = weights.stuck_second_bytes = 0
            weights.forget_measurement()

    def dismiss_waiters(self, instance: Instance) -> tuple[Waiter, ...]:
        """Take everybody who waits out of the queue."""
        waiters = tuple(instance.waiters)
        instance.waiters.clear()
        return waiters

    def begin_close(self, instance: Instance, *, with_weights: bool, drop_pages: bool = False) -> None:
        """Take an idle instance out of use, and its weights unless somebody else needs them."""
        instance.state = "closing"
        weights = instance.weights
        if weights is None:
            return
        weights.keep_until = max(weights.keep_until, instance.expires_at)
        others = (other for other in weights.instances if other.state != "closing")
        if with_weights and not any(others) and not self.is_wanted(weights):
            weights.closes, weights.drop_pages = True, drop_pages

    def finish_close(self, instance: Instance) -> None:
        """Note that the memory of an instance is back, or was not got.

        Requests that came meanwhile wait for a new open.
        """
        if instance.handle is not None:
            stats = instance.handle.engine.stats
            self.past[instance.file] = self.past_totals(instance.file).plus_work(stats)
        if instance.weights is not None:
            instance.weights.instances.discard(instance)
            if instance.state == "opening":
                instance.weights.forget_measurement()
        instance.state, instance.weights, instance.handle = "waiting", None, None
        instance.private_bytes, instance.leaves_when_idle = 0, False
        instance.parked_bytes = instance.parking_bytes = 0
        instance.stays_put = False
        self.forget_unwanted(instance)

    def forget_unwanted(self, instance: Instance) -> None:
        """Drop a waiting instance that nobody waits for any more."""
        if instance.state == "waiting" and not instance.waiters:
            self.instances.pop(instance.key, None)


def _all_places(
    prediction: Prediction, places: Mapping[Hashable, int], key: FileKey
) -> Mapping[Hashable, int]:
    """The places known beforehand, and one for the rest; none where none is known."""
    return {**places, ("rest", key): _rest_bytes(prediction, places)} if places else {}


def _rest_bytes(prediction: Prediction, places: Mapping[Hashable, int]) -> int:
    """What weights take beside the places known beforehand."""
    return max(prediction.weights_bytes - sum(places.values()), 0)


def _take(places: dict[Hashable, int], weights: Weights) -> int:
    """Take out those that weights use; their bytes."""
    return sum(places.pop(place) for place in places.keys() & weights.places.keys())


def _resident_bytes(weights: Weights, beside_bytes: int) -> int:
    """What measured weights count with, of which ``beside_bytes`` are used by none that counts whole.

    Of what is resident, whatever finds no place there counts with those.
    """
    return min(weights.resident_bytes, beside_bytes) if weights.places else weights.resident_bytes
