"""Weights, contexts on them, and requests that wait for those: the rows of the ledger."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio

from shardload.config import KvType
from shardload.engine.stats import EngineTotals
from shardload.library.entry import FileKey, ModelEntry, Use, slots_for
from shardload.library.estimate import Prediction
from shardload.library.lease import Lease, OpenProgress
from shardload.library.opener import InstanceHandle, Residency, WeightsFacts, WeightsHandle

ServedKey = tuple[FileKey, int, int, KvType]
"""What names map onto: the file, the size of the context, its slots and the numbers it keeps."""
InstanceKey = tuple[ServedKey, Use]

NEVER = -math.inf

logger = logging.getLogger("shardload.library")

State = Literal["waiting", "opening", "open", "closing"]


def served_key(entry: ModelEntry) -> ServedKey:
    """What a name stands for in memory."""
    return entry.file_key, entry.ctx_tokens, entry.slots, entry.kv_type


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
class Totals:
    """What the opens of one file counted together."""

    page_ins: int = 0
    page_outs: int = 0
    waited_seconds: float = 0.0
    work: EngineTotals = field(default_factory=EngineTotals)
    """Of the engines of all contexts on it."""

    def plus_pages(self, facts: WeightsFacts) -> Totals:
        """With one open of the weights more."""
        return replace(
            self,
            page_ins=self.page_ins + facts.page_ins,
            page_outs=self.page_outs + facts.page_outs,
            waited_seconds=self.waited_seconds + facts.waited_seconds,
        )

    def plus_work(self, stats: EngineTotals) -> Totals:
        """With one engine more."""
        return replace(self, work=self.work.plus(stats))


@dataclass(slots=True, eq=False)
class Weights:
    """One file in memory, and the instances on it. May stay open without any."""

    key: FileKey
    name: str
    """Of the model that it was opened for; others may be on it."""
    size_bytes: int
    """Mapped bytes that each step touches: as predicted, and from the open on by the places."""
    private_bytes: int
    layer_bytes: int = 0
    """What must be there at the same time for a step to go on."""
    limit_bytes: int | None = None
    """What it may have of its mapped bytes while it streams."""
    second_total_bytes: int = 0
    second_allowed: bool = False
    """Whether prompts may use the second layout."""
    granted_second_bytes: int = 0
    """What the second layout may have; it counts until it is back."""
    places: Mapping[Hashable, int] = field(default_factory=dict)
    measured: Residency | None = None
    """What of it was in memory when it was last measured."""
    measured_at: float = NEVER
    """When, if neither it nor what shares memory with it has been in use since."""
    seen_at: float = NEVER
    """When it was last measured, in use or not."""
    uses: int = 0
    """How often it began or ended to be used, so that a measurement knows whether it is still true."""
    stuck_bytes: int = 0
    """Resident bytes that could not be sent away since the last use."""
    stuck_second_bytes: int = 0
    """The same of the second layout."""
    leaving_bytes: int = 0
    """What an effect that has begun will give back; it counts until it is back."""
    moving: bool = False
    """Whether an effect on its pages is under way."""
    refused_at: int = -1
    """After how many uses it could not be given another limit; it is not tried again before the next."""
    closes: bool = False
    """Whether it is closed as soon as no instance is on it."""
    drop_pages: bool = False
    claimed: bool = False
    """Whether somebody opens it already."""
    pinned: bool = False
    state: Literal["opening", "open", "closing"] = "opening"
    handle: WeightsHandle | None = None
    error: BaseException | None = None
    opened: anyio.Event = field(default_factory=anyio.Event)
    instances: set[Instance] = field(default_factory=set)
    served: set[ServedKey] = field(default_factory=set)
    """What instances on it were called for."""
    last_used: float = NEVER
    keep_until: float = NEVER
    """Until when it is worth its place without an instance."""
    opened_at: float = NEVER
    open_seconds: float = 0.0

    @property
    def active(self) -> bool:
        """Whether all of it may be needed at any moment."""
        return self.state == "opening" or any(instance.active for instance in self.instances)

    @property
    def is_measured(self) -> bool:
        """Whether it counts with what was measured: it is idle, and has been since."""
        return self.measured is not None and self.measured_at != NEVER and not self.active

    @property
    def resident_bytes(self) -> int:
        """What of the working layout may be in memory now."""
        if self.is_measured and self.measured is not None:
            return self.measured.resident_bytes
        return self.size_bytes if self.limit_bytes is None else min(self.limit_bytes, self.size_bytes)

    @property
    def second_bytes(self) -> int:
        """What of the second layout may be in memory now."""
        if self.is_measured and self.measured is not None:
            return self.measured.second_bytes
        return self.promised_second_bytes

    @property
    def promised_second_bytes(self) -> int:
        """What of the second layout counts while it is in use: what it may have, or still has."""
        measured = self.measured.second_bytes if self.measured is not None else 0
        return max(measured, self.granted_second_bytes)

    @property
    def counted_bytes(self) -> int:
        """What it takes of the budget by itself."""
        return self.private_bytes + self.resident_bytes + self.second_bytes

    def forget_measurement(self) -> None:
        """Count all of it until it is measured again."""
        self.measured_at = NEVER
        self.uses += 1

    def allow_second(self, allowed: bool) -> None:
        """Let prompts use the second layout, or no longer; then it counts until its pages are gone."""
        self.second_allowed = allowed
        if allowed:
            self.granted_second_bytes = self.second_total_bytes

    @property
    def may_be_resized(self) -> bool:
        """Whether another limit is worth trying."""
        return not self.moving and self.refused_at != self.uses

    def note_refused_resize(self) -> None:
        """Note that it could not be given another limit."""
        self.refused_at = self.uses

    def begin_move(self, leaving_bytes: int) -> None:
        """Note that an effect on the pages begins."""
        self.moving, self.leaving_bytes = True, leaving_bytes

    def finish_move(self, kept_bytes: int, freed_bytes: int) -> None:
        """Note that it has ended, and what stays in memory although it should have left.

        It was measured since.
        """
        self.moving, self.leaving_bytes = False, 0
        if not self.second_allowed:
            self.granted_second_bytes = 0
        if self.measured is None:
            return
        self.stuck_second_bytes = 0 if self.second_allowed else self.measured.second_bytes
        if not self.is_measured:
            return
        resident_bytes = self.measured.resident_bytes
        if freed_bytes <= 0:
            self.stuck_bytes = resident_bytes
        elif resident_bytes > kept_bytes:
            self.stuck_bytes += resident_bytes - kept_bytes


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
    parked_bytes: int = 0
    """What its KV state gave back; the next request takes it again."""
    parking_bytes: int = 0
    """What it will give back when the parking that goes on is done; it counts until then."""
    stays_put: bool = False
    """Whether its KV state could not be parked since the last use."""
    leases: int = 0
    uses: int = 0
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
    def file(self) -> FileKey:
        """The weights that it is on, or will be."""
        return self.key[0][0]

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
    def is_parked(self) -> bool:
        """Whether its KV state was given back."""
        return self.idle and self.parked_bytes > 0

    @property
    def parkable_bytes(self) -> int:
        """What parking its KV state should give back."""
        if not self.idle or self.handle is None or self.stays_put or self.parked_bytes or self.parking_bytes:
            return 0
        return min(self.handle.kv_bytes, self.private_bytes)

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

    def begin_park(self) -> None:
        """Note that the KV state of an idle context is being given back."""
        self.parking_bytes = self.parkable_bytes

    def finish_park(self, uses: int, freed_bytes: int) -> None:
        """Note what came back, unless a request took it again meanwhile."""
        self.parking_bytes = 0
        if not self.idle or self.uses != uses:
            return
        if freed_bytes <= 0:
            self.stays_put = True
            return
        self.parked_bytes = min(freed_bytes, self.private_bytes)
        self.private_bytes -= self.parked_bytes
