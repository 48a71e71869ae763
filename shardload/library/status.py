"""What the manager tells of each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from shardload.engine.stats import EngineTotals
from shardload.library.entry import ModelEntry
from shardload.library.holdings import Instance, Totals, Weights
from shardload.library.opener import Residency, ShardResidency, WeightsFacts

ModelState = Literal["open", "opening", "streaming", "parked", "closed", "failed"]
"""*Streaming*: open with less memory than its weights take; *parked*: its weights are open, and no context is
or one whose KV state was saved and given back."""


@dataclass(slots=True)
class ModelCounters:
    """What happened under a name since the start."""

    leases: int = 0
    opens: int = 0
    evictions: int = 0
    failed_opens: int = 0
    open_seconds: float = 0.0
    queue_seconds: float = 0.0
    """Time from the wish for a lease to the lease, over all leases."""
    last_used: float | None = None
    error: str | None = None
    """Why the last open failed; None after one that worked."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model at one moment; names that share weights or a context each show all of it."""

    name: str
    state: ModelState
    resident_bytes: int | None
    """Of the weights, open or closed, as last measured; None where the system does not tell."""
    size_bytes: int
    private_bytes: int
    kv_bytes: int
    leases: int
    queued: int
    pinned: bool
    expires_in_seconds: float | None
    """Until an idle model is closed; None while it is in use, pinned or kept for ever."""
    ctx_tokens: int
    slots: int
    last_used: float | None
    """On the manager's clock."""
    opens: int
    evictions: int
    failed_opens: int
    open_seconds: float
    queue_seconds: float
    error: str | None
    warm_share: float | None = None
    """The part of what each step touches that is in memory, 0 to 1; None where the system does not tell."""
    resident_limit_bytes: int | None = None
    """What a streaming model may have of its weights in memory; None for any other."""
    shared_bytes: int = 0
    """Resident bytes of the weights that other open models use as well."""
    packed_bytes: int = 0
    """Resident bytes of the weights that lie in the packed store."""
    second_bytes: int = 0
    """Resident bytes of the layout that only prompts use, beside ``resident_bytes``."""
    page_ins: int = 0
    """Bytes brought into memory since the start."""
    page_outs: int = 0
    """Bytes sent out of memory since the start."""
    waited_seconds: float = 0.0
    """How long steps have waited for pages since the start."""
    running_sequences: int = 0
    """Answers, each of several to one request, that have a slot to be computed in."""
    queued_sequences: int = 0
    """Answers that wait for a slot."""
    work: EngineTotals = field(default_factory=EngineTotals)
    """What was computed on the weights since the start, in contexts of any size."""
    shards: tuple[ShardResidency, ...] = ()
    """As last measured; empty for a closed model."""


def model_status(
    entry: ModelEntry,
    instances: Sequence[Instance],
    weights: Weights | None,
    counters: ModelCounters,
    past: Totals,
    *,
    closed_bytes: int | None,
    pinned: bool,
    now: float,
) -> ModelStatus:
    """Describe a model by the weights of its file and the instances that its name stands for.

    ``past`` is what weights and contexts of the file counted that are closed by now; ``closed_bytes`` is what
    the system holds of the file when nothing has it open.
    """
    there = [instance for instance in instances if instance.state in ("opening", "open")]
    waiting = [instance for instance in instances if instance.state in ("waiting", "closing")]
    if weights is not None and weights.state == "closing":
        weights = None
    facts = weights.handle.facts if weights and weights.handle else None
    weights_bytes = facts.private_bytes if facts else weights.private_bytes if weights else 0
    status = ModelStatus(
        name=entry.name,
        state=_state(there, waiting, weights, counters),
        resident_bytes=None,
        size_bytes=entry.size_bytes,
        private_bytes=sum(i.private_bytes for i in there) + weights_bytes,
        kv_bytes=sum(instance.handle.kv_bytes for instance in there if instance.handle),
        leases=sum(instance.leases for instance in there),
        # Leases beyond the slots wait inside the engine.
        queued=sum(max(len(i.waiters), i.queued) for i in (*there, *waiting)),
        pinned=pinned,
        expires_in_seconds=None if pinned else _expires_in_seconds(there, weights, now),
        ctx_tokens=entry.ctx_tokens,
        slots=entry.slots,
        last_used=counters.last_used,
        opens=counters.opens,
        evictions=counters.evictions,
        failed_opens=counters.failed_opens,
        open_seconds=counters.open_seconds,
        queue_seconds=counters.queue_seconds,
        error=counters.error,
    )
    return _with_pages(_with_work(status, instances, weights, past), weights, facts, past, closed_bytes)


def _with_work(
    status: ModelStatus, instances: Sequence[Instance], weights: Weights | None, past: Totals
) -> ModelStatus:
    """The same with what its engines do, and what they have done on the weights."""
    own = [instance.handle.engine.stats for instance in instances if instance.handle]
    for instance in weights.instances if weights else ():
        if instance.handle is not None:
            past = past.plus_work(instance.handle.engine.stats)
    return replace(
        status,
        running_sequences=sum(stats.running for stats in own),
        queued_sequences=sum(stats.queued for stats in own),
        work=past.work,
    )


def _with_pages(
    status: ModelStatus,
    weights: Weights | None,
    facts: WeightsFacts | None,
    past: Totals,
    closed_bytes: int | None,
) -> ModelStatus:
    """The same with all that is known of its pages."""
    totals = past.plus_pages(facts) if facts else past
    measured = _measured(weights, facts)
    resident_bytes = measured.resident_bytes if measured else None if weights else closed_bytes
    return replace(
        status,
        resident_bytes=resident_bytes,
        warm_share=_warm_share(resident_bytes, measured, facts, status.size_bytes),
        resident_limit_bytes=weights.limit_bytes if weights else None,
        shared_bytes=measured.shared_bytes if measured else 0,
        packed_bytes=measured.packed_bytes if measured else 0,
        second_bytes=measured.second_bytes if measured else 0,
        page_ins=totals.page_ins,
        page_outs=totals.page_outs,
        waited_seconds=totals.waited_seconds,
        shards=measured.shards if measured else (),
    )


def _measured(weights: Weights | None, facts: WeightsFacts | None) -> Residency | None:
    """The measurement that goes with the facts; it may be younger than the one that memory is counted by."""
    if facts is not None and facts.measured is not None:
        return facts.measured
    return weights.measured if weights is not None else None


def _expires_in_seconds(there: Sequence[Instance], weights: Weights | None, now: float) -> float | None:
    open_now = [instance for instance in there if instance.state == "open"]
    expires_at = math.inf
    if open_now and all(instance.idle for instance in open_now):
        expires_at = max(instance.expires_at for instance in open_now)
    elif weights is not None and not weights.instances:
        expires_at = weights.keep_until
    return max(expires_at - now, 0.0) if math.isfinite(expires_at) else None


def _state(
    there: Sequence[Instance], waiting: Sequence[Instance], weights: Weights | None, counters: ModelCounters
) -> ModelState:
    if any(instance.state == "open" and not instance.is_parked for instance in there):
        return "open" if weights is None or weights.limit_bytes is None else "streaming"
    if any(instance.state == "opening" for instance in there) or any(
        instance.waiters for instance in waiting
    ):
        return "opening"
    if weights is not None and weights.state == "open":
        return "parked"
    return "failed" if counters.error is not None else "closed"


def _warm_share(
    resident_bytes: int | None, measured: Residency | None, facts: WeightsFacts | None, size_bytes: int
) -> float | None:
    if resident_bytes is None:
        return None
    if measured is not None:
        resident_bytes += measured.elsewhere_bytes
    if facts is not None and facts.working_bytes:
        # What is in private memory is not measured, and cannot leave.
        size_bytes = facts.working_bytes
        resident_bytes += max(size_bytes - sum(facts.places.values()), 0) if facts.places else 0
    return min(resident_bytes / size_bytes, 1.0) if size_bytes else 1.0
