"""The models that are open: who holds them, who waits for them, and who leaves for whom.

All state lives in a `Ledger` and is touched on one event loop only. Each change is a synchronous step; what
takes time (opening, closing, measuring) runs beside it and comes back with another such step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from shardload.config import Config
from shardload.errors import OpenFailed, ShardloadError, ShuttingDown, format_bytes
from shardload.library.actions import Actions
from shardload.library.admission import Turn
from shardload.library.alarm import Alarm
from shardload.library.budget import Budget
from shardload.library.budget import budget_bytes as configured_budget_bytes
from shardload.library.catalog import Catalog
from shardload.library.effects import Effects
from shardload.library.entry import ModelEntry, Use
from shardload.library.fitting import renamed
from shardload.library.holdings import Instance, ServedKey, Waiter, served_key
from shardload.library.keeping import PARK_IDLE_SECONDS, Keeping, Settled
from shardload.library.lease import Lease, OpenProgress
from shardload.library.ledger import Ledger
from shardload.library.lending import Lending
from shardload.library.lookout import Lookout
from shardload.library.measuring import Measuring
from shardload.library.names import Names
from shardload.library.opener import Opener
from shardload.library.replacement import Replacements
from shardload.library.seeded import has_room_beside
from shardload.library.status import ModelStatus, model_status

__all__ = ["Lease", "Manager", "ModelStatus", "OpenProgress"]

logger = logging.getLogger("shardload.library")


class Manager:
    """Opens models on demand within a budget and lends them out; an async context manager.

    Everything belongs to the event loop that entered it. The opener is borrowed.
    """

    def __init__(
        self,
        catalog: Catalog,
        opener: Opener,
        *,
        budget_bytes: int | Callable[[], int],
        parked_bytes: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        queue_limit: int = 64,
        keep_alive_seconds: float = 300.0,
        min_residency_seconds: float = 5.0,
        max_wait_seconds: float = 10.0,
        park_idle_seconds: float = PARK_IDLE_SECONDS,
    ) -> None:
        """Set the defaults.

        A model that took long to open is not sent away for as long again, at most ``min_residency_seconds``.
        After ``max_wait_seconds`` in the queue nobody passes a request any more. After ``park_idle_seconds``
        an idle context's KV state is parked and its memory given back; below 0: only when it is needed.
        """
        self.catalog = catalog
        self._budget, self._clock = Budget(budget_bytes, parked_bytes=parked_bytes), clock
        self._keep_alive_seconds = keep_alive_seconds
        self._min_residency_seconds, self._max_wait_seconds = min_residency_seconds, max_wait_seconds
        self._ledger, self._opener = Ledger(), opener
        self._lending = Lending(self._ledger, clock, queue_limit, self.turn)
        self._effects = Effects(self._ledger, opener, clock, self, self._start)
        self._replacements = Replacements(catalog, self)
        self._lookout = Lookout(catalog, self.is_open, clock)
        self._names = Names(catalog)
        self._keeping = Keeping(
            self._ledger, self._is_named, lambda key: self._names.pin_on(key) is not None, park_idle_seconds
        )
        self._tasks: TaskGroup | None = None
        self._closing = False
        self._changed = anyio.Event()
        self._alarm = Alarm(clock)
        self._measuring = Measuring(
            self._ledger, catalog, opener, self._effects, clock=clock, start=self._start, turn=self.turn
        )

    @classmethod
    def from_config(
        cls, catalog: Catalog, opener: Opener, config: Config, parked: Callable[[], int] = lambda: 0
    ) -> Self:
        """A manager with the budget, queue and keep-alive of a configuration; ``parked`` as for `Budget`."""
        return cls(
            catalog,
            opener,
            budget_bytes=configured_budget_bytes(config),
            parked_bytes=parked,
            queue_limit=config.engine.queue,
            keep_alive_seconds=config.engine.keep_alive,
            park_idle_seconds=config.parking.idle,
        )

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._keep_time)
        self._measuring.refresh()
        for entry in self.catalog.entries():
            if entry.preload:
                self._tasks.start_soon(self._preload, entry.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        tasks = self._tasks
        if tasks is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self.close()
        finally:
            tasks.cancel_scope.cancel()
            # Nothing in it raises: what the body of the with statement raised goes on as it is.
            await tasks.__aexit__(None, None, None)
            self._tasks = None

    # -- leases

    async def lease(
        self,
        entry: ModelEntry,
        *,
        kind: Use = "generate",
        keep_alive_seconds: float | None = None,
        progress: Callable[[OpenProgress], None] | None = None,
    ) -> Lease:
        """Hold a model open for a request, which waits here until the model is open and it is its turn.

        The file is the one that the name stands for now. Raises ModelNotFound, OpenFailed,
        InsufficientMemory (AllPinned), Overloaded and ShuttingDown.
        """
        self._check_running()
        current = await self._replacements.current(entry.name)
        return await self.obtain(current, kind, keep_alive_seconds=keep_alive_seconds, progress=progress)

    async def obtain(
        self,
        entry: ModelEntry,
        kind: Use,
        *,
        keep_alive_seconds: float | None = None,
        progress: Callable[[OpenProgress], None] | None = None,
    ) -> Lease:
        """`lease` for exactly this entry, whether or not the catalog has it.

        A seeded text takes the ordinary context where memory has no place for one of its own beside that.
        """
        self._check_running()
        if kind == "seeded" and not has_room_beside(
            self._ledger, self._opener, entry, self._budget.bytes_at(self._clock()), self._pinned()
        ):
            kind = "generate"
        default = self._keep_alive_seconds if entry.keep_alive_seconds is None else entry.keep_alive_seconds
        instance = self._ledger.instance(entry, kind, self._opener.predict(entry, kind), default)
        return await self._lending.wait(instance, entry, keep_alive_seconds, progress)

    async def load(
        self, name: str, *, pin: bool | None = None, keep_alive_seconds: float | None = None
    ) -> None:
        """Open a model as a request would, and pin or unpin it; raises what `lease` raises."""
        entry = self.catalog.get(name)
        with await self.lease(entry, kind=entry.kind, keep_alive_seconds=keep_alive_seconds):
            if pin is not None:
                self.pin(name, pin)

    async def unload(self, name: str) -> tuple[str, ...]:
        """Close a model as soon as its leases end, and wait for that; later requests open it anew.

        Closes every context that the name stands for, also where other names share it, and takes their pins
        away. Returns the names that were pinned.
        """
        key = served_key(self.catalog.get(name))
        unpinned = self._names.unpin(key)
        self._keeping.unload(key)
        closed = [i.closed for i in self._ledger.served(key) if i.state in ("opening", "open", "closing")]
        self.turn()
        for event in closed:
            await event.wait()
        await self._until(lambda: not self._keeping.is_unloading(key))
        return unpinned

    def pin(self, name: str, pinned: bool) -> None:
        """Keep a model from being closed for others or for being idle, once it is open; or no longer."""
        self._names.pin(name, pinned)
        self.turn()

    async def swap(self, name: str, path: Path) -> None:
        """Give a name another file, after that has been opened: running leases finish on the old one.

        Raises RequestError for a path outside the served folders, ModelNotFound, and OpenFailed or
        InsufficientMemory for a file that does not open; nothing has changed then.
        """
        self._check_running()
        await self._replacements.swap(name, path)

    async def reconfigure(self, config: Config) -> None:
        """Serve by another configuration. Raises ConfigError; nothing has changed then.

        A name whose new file does not open keeps the old one. Threads and batch sizes stay as they are.
        """
        self._check_running()
        await self._replacements.reconfigure(config)
        self._names.take_configured_pins()
        if config.memory.budget is not None:
            self._budget.configured = config.memory.budget
        self._lending.queue_limit, self._keep_alive_seconds = config.engine.queue, config.engine.keep_alive
        self._keeping.park_idle_seconds = config.parking.idle
        self.turn()

    async def look_again(self, *, at_once: bool = False) -> None:
        """Find model files that came, and let go of those that went; ``at_once`` as for `Lookout.look`."""
        if await self._lookout.look(at_once=at_once):
            self._names.take_configured_pins()
            self.turn()

    def status(self) -> list[ModelStatus]:
        """Every model of the catalog; what is resident is as of the last measurement, and one is begun."""
        now = self._clock()
        if not self._closing and self._tasks is not None:
            self._measuring.refresh()
        return [
            model_status(
                entry,
                list(self._ledger.served(served_key(entry))),
                self._ledger.weights.get(entry.file_key),
                self._lending.counters(entry.name),
                self._ledger.past_totals(entry.file_key),
                closed_bytes=self._measuring.closed_bytes(entry),
                pinned=self._names.is_pinned(entry.name),
                now=now,
            )
            for entry in self.catalog.entries()
        ]

    async def measure(self) -> None:
        """Measure what is resident, for a `status` that is of now."""
        await self._measuring.now()

    async def close(self, deadline_seconds: float = 0.0) -> None:
        """Refuse what waits, give leases the time until the deadline, then close everything. Idempotent."""
        self._closing = True
        for instance in list(self._ledger.instances.values()):
            for waiter in self._ledger.dismiss_waiters(instance):
                waiter.fail(ShuttingDown())
            self._ledger.forget_unwanted(instance)
        instances = self._ledger.instances
        with anyio.move_on_after(deadline_seconds):
            await self._until(lambda: not any(instance.leases for instance in instances.values()))
        self._opener.give_up()
        settled = Settled()
        for instance in list(instances.values()):
            if instance.state == "open":
                self._keeping.close(instance, "shutting down", settled)
        self._effects.carry_out(settled)
        self.turn()
        await self._until(lambda: not self._ledger.instances and not self._ledger.weights)

    async def relieve(self, bytes_short: int) -> None:
        """Give memory back to others on the machine, and do without it for a while.

        Returns when it is back, or nothing more can be given. Models in use stream where it takes that.
        """
        if self._closing or self._tasks is None or self._ledger.leaving_bytes() > 0:
            return  # what is on its way comes first: they will ask again
        await self._effects.measure()
        now, used_bytes = self._clock(), self._ledger.used_bytes()
        self._budget.lower(now, min(used_bytes, self._budget.bytes_at(now)) - bytes_short)
        short, left = format_bytes(bytes_short), format_bytes(self._budget.bytes_at(now))
        logger.warning("memory is short by %s: models do with %s for a while", short, left)
        self.turn()
        await self._until(lambda: self._closing or self._ledger.leaving_bytes() <= 0)

    # -- synchronous steps

    def turn(self) -> None:
        """Look at everything and begin what is to be done now."""
        now = self._clock()
        self._effects.carry_out(self._keeping.settle(now, closing=self._closing))
        pinned = self._pinned()
        for weights in self._ledger.weights.values():
            weights.pinned = any(instance in pinned for instance in weights.instances)
        actions = Actions() if self._closing else self._decide(now, pinned)
        for instance, waiters in actions.grants:
            self._lending.grant(instance, waiters)
        for waiters, error in actions.failures:
            for waiter in waiters:
                waiter.fail(renamed(error, waiter.entry.name))
        for instance in actions.closes:
            self._lending.counters(instance.entry.name).evictions += 1
        self._effects.begin(actions)
        if actions.evicted:
            self._effects.carry_out(self._keeping.settle(now, closing=self._closing))
        if actions.measure:
            self._measuring.soon()
        self._alarm.set(min(actions.next_at, self._keeping.next_at(), self._budget.next_change(now)))
        self._changed.set()
        self._changed = anyio.Event()

    def _decide(self, now: float, pinned: dict[Instance, str]) -> Actions:
        lowered = self._budget.is_lowered(now)
        return Turn(
            ledger=self._ledger,
            now=now,
            budget_bytes=self._budget.bytes_at(now),
            pinned=pinned,
            max_wait_seconds=self._max_wait_seconds,
            min_residency_seconds=self._min_residency_seconds,
            is_stale=lambda weights: not self._measuring.is_young(weights),
            full_budget_bytes=self._budget.configured_bytes if lowered else None,
            recovers_at=self._budget.next_change(now),
        ).decide()

    def opened(self, instance: Instance) -> None:
        """Lend an instance that has just been opened to those who waited for it."""
        counters = self._lending.counters(instance.entry.name)
        counters.opens += 1
        counters.open_seconds += instance.open_seconds
        counters.error = None
        self._lending.grant(instance, self._ledger.lend(instance))
        self._measuring.soon()
        self.turn()

    def open_failed(self, instance: Instance, waiters: tuple[Waiter, ...], reason: str) -> None:
        """Tell those who waited; the next request tries again."""
        counters = self._lending.counters(instance.entry.name)
        counters.failed_opens += 1
        counters.error = reason
        for waiter in waiters:
            waiter.fail(OpenFailed(waiter.entry.name, reason))
        self.turn()

    def progressed(self, instance: Instance, fraction: float) -> None:
        """Tell those who wait for an opening instance."""
        for waiter in instance.waiters:
            waiter.report("opening", fraction)

    @property
    def queue_limit(self) -> int:
        """How many requests may wait for one model."""
        return self._lending.queue_limit

    def is_open(self, entry: ModelEntry) -> bool:
        """Whether this entry's file is open."""
        weights = self._ledger.weights.get(entry.file_key)
        return weights is not None and weights.state == "open"

    def _is_named(self, key: ServedKey) -> bool:
        return self._names.is_served(key) or self._replacements.expects(key)

    def _pinned(self) -> dict[Instance, str]:
        """Pinned instances, but for those whose file is being replaced: they may leave for the new one."""
        pinned = self._names.pinned(self._ledger.instances.values())
        return {each: name for each, name in pinned.items() if not self._replacements.is_replacing(name)}

    def _check_running(self) -> None:
        if self._closing or self._tasks is None:
            raise ShuttingDown

    def _start(self, effect: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        async def to_its_end() -> None:
            # At the end of a loop every task of it is cancelled, and with one of them the group: what closes
            # the models must run nevertheless.
            with anyio.CancelScope(shield=True):
                await effect(*arguments)

        assert self._tasks is not None, "entered"
        self._tasks.start_soon(to_its_end)

    async def _preload(self, name: str) -> None:
        try:
            await self.load(name)
        except ShardloadError as error:
            logger.warning("%s was not preloaded: %s", name, error)

    async def _keep_time(self) -> None:
        while True:
            await self._alarm.wait()
            self.turn()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
