"""Handing out leases: the queue before a model, and the counting of who has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from shardload.errors import Overloaded
from shardload.library.entry import ModelEntry
from shardload.library.holdings import Instance, Waiter
from shardload.library.lease import Lease, OpenProgress
from shardload.library.ledger import Ledger
from shardload.library.opener import InstanceHandle
from shardload.library.status import ModelCounters

RETRY_AFTER_SECONDS = (1.0, 60.0)
AVERAGE_WEIGHT = 0.2


class Lending:
    """Queues requests and grants them leases; ``turn`` is called when that changes what can be done."""

    def __init__(
        self, ledger: Ledger, clock: Callable[[], float], queue_limit: int, turn: Callable[[], None]
    ) -> None:
        self._ledger, self._clock, self._turn = ledger, clock, turn
        self._counters: dict[str, ModelCounters] = {}
        self.queue_limit = queue_limit
        """How many requests may wait for one model beyond those that have its slots."""

    def counters(self, name: str) -> ModelCounters:
        """What is counted under a name of the catalog."""
        return self._counters.setdefault(name, ModelCounters())

    async def wait(
        self,
        instance: Instance,
        entry: ModelEntry,
        keep_alive_seconds: float | None,
        progress: Callable[[OpenProgress], None] | None,
    ) -> Lease:
        """Queue a request and return its lease; raises Overloaded, and what ends the wait otherwise."""
        self._check_queue(instance, entry.name)
        waiter = self._ledger.enqueue(instance, entry, self._clock(), keep_alive_seconds, progress)
        self._turn()
        if not waiter.done.is_set():
            waiter.report("opening" if instance.state == "opening" else "waiting", 0.0)
            try:
                await waiter.done.wait()
            except BaseException:
                self._abandon(instance, waiter)
                raise
        if waiter.error is not None:
            raise waiter.error
        if waiter.lease is None:
            raise AssertionError("a wait ends with a lease or an error")
        return waiter.lease

    def grant(self, instance: Instance, waiters: tuple[Waiter, ...]) -> None:
        """Lend an open instance to those who waited for it; the ledger has counted them."""
        now = self._clock()
        weights, handle = instance.weights, instance.handle
        if weights is None or weights.handle is None or handle is None:
            raise AssertionError("a lease is granted on an open instance")
        for waiter in waiters:
            counters = self.counters(waiter.entry.name)
            counters.leases += 1
            counters.queue_seconds += now - waiter.since
            counters.last_used = now
            if waiter.keep_alive_seconds is not None:
                instance.keep_alive_seconds = waiter.keep_alive_seconds
            waiter.lease = Lease(
                waiter.entry,
                weights.handle,
                handle,
                partial(self._release, instance, handle, waiter.entry.name, now),
                queue_seconds=now - waiter.since,
                load_seconds=instance.open_seconds if waiter.since <= instance.opened_at else 0.0,
            )
            waiter.done.set()

    def _release(self, instance: Instance, handle: InstanceHandle, name: str, granted_at: float) -> None:
        now = self._clock()
        self.counters(name).last_used = now
        if instance.handle is not handle:
            return  # closed under its leases, at the end
        instance.lease_seconds += AVERAGE_WEIGHT * (now - granted_at - instance.lease_seconds)
        self._ledger.release(instance, now)
        self._turn()

    def _abandon(self, instance: Instance, waiter: Waiter) -> None:
        """Take a request out that does not wait any more; the open goes on for the others."""
        if waiter.lease is not None:
            waiter.lease.release()
        elif waiter in instance.waiters:
            instance.waiters.remove(waiter)
            self._ledger.forget_unwanted(instance)
            self._turn()

    def _check_queue(self, instance: Instance, name: str) -> None:
        if instance.queued >= self.queue_limit:
            shortest, longest = RETRY_AFTER_SECONDS
            seconds = min(max(instance.queue_seconds, shortest), longest)
            raise Overloaded(name, instance.queued, float(math.ceil(seconds)))
