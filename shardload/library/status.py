"""What the manager tells of each model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shardload.library.entry import ModelEntry
from shardload.library.ledger import Instance

ModelState = Literal["open", "opening", "closed", "failed"]


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


def model_status(
    entry: ModelEntry,
    instances: Iterable[Instance],
    counters: ModelCounters,
    *,
    closed_bytes: int | None,
    pinned: bool,
    now: float,
) -> ModelStatus:
    """Describe a model by the instances that its name stands for.

    ``closed_bytes`` is what the system holds of its file when nothing has it open.
    """
    there = [instance for instance in instances if instance.state in ("opening", "open")]
    waiting = [instance for instance in instances if instance.state in ("waiting", "closing")]
    weights = next((instance.weights for instance in there if instance.weights is not None), None)
    open_now = [instance for instance in there if instance.state == "open"]
    state: ModelState = (
        "open" if open_now else "opening" if there or any(i.waiters for i in waiting) else "closed"
    )
    if state == "closed" and counters.error is not None:
        state = "failed"
    expires_at = math.inf
    if open_now and not pinned and all(instance.idle for instance in open_now):
        expires_at = max(instance.expires_at for instance in open_now)
    return ModelStatus(
        name=entry.name,
        state=state,
        resident_bytes=weights.measured_bytes if weights else closed_bytes,
        size_bytes=entry.size_bytes,
        private_bytes=sum(i.private_bytes for i in there) + (weights.private_bytes if weights else 0),
        kv_bytes=sum(instance.handle.kv_bytes for instance in open_now if instance.handle),
        leases=sum(instance.leases for instance in there),
        # Leases beyond the slots wait inside the engine.
        queued=sum(max(len(i.waiters), i.queued) for i in (*there, *waiting)),
        pinned=pinned,
        expires_in_seconds=max(expires_at - now, 0.0) if math.isfinite(expires_at) else None,
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
