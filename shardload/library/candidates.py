"""What may leave, as the ledger has it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from shardload.library.holdings import Instance, Weights
from shardload.library.ledger import Ledger
from shardload.library.relief import Context, Holding
from shardload.library.sharing import own_bytes

KEPT_SHARE = 0.25
"""What of every layer stays as long as it can, so that a model comes back while it computes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is spared."""

    keep: Collection[Instance]
    """Instances that stay with all pages that they need."""
    until: float = math.inf
    """Requests that arrived until then keep the weights that they wait for."""
    min_residency_seconds: float = 0.0
    """What took long to open stays for as long, at most this."""


def holdings(ledger: Ledger, rules: Rules) -> list[Holding]:
    """Everything that may be taken from open weights; keys are the ledger's own rows."""
    order = ledger.by_heat()
    own = own_bytes(ledger.groups, order)
    needed = {instance.file for instance in rules.keep}
    return [
        _holding(ledger, weights, rules, own[weights], needed=weights.key in needed)
        for weights in order
        if not weights.moving and not weights.closes
    ]


def _holding(ledger: Ledger, weights: Weights, rules: Rules, own: int, *, needed: bool) -> Holding:
    contexts = [
        instance
        for instance in weights.instances
        if instance.idle and not instance.parking_bytes and instance not in rules.keep
    ]
    staying = sum(1 for each in weights.instances if each.state != "closing") - len(contexts)
    if weights.limit_bytes is not None:
        own = min(own, weights.limit_bytes)
    second = max(weights.second_bytes - weights.stuck_second_bytes, 0)
    if weights.pinned or not (weights.is_measured or weights.active):
        second = 0
    pages = max(weights.resident_bytes - weights.stuck_bytes, 0) if weights.is_measured else 0
    return Holding(
        key=weights,
        active=weights.active or needed or weights.pinned,
        second_bytes=second,
        pages_bytes=pages,
        kept_bytes=math.ceil(KEPT_SHARE * own),
        closing_bytes=max(ledger.own_bytes(weights) - pages - second, 0),
        contexts=tuple(_context(instance, rules) for instance in contexts),
        others=staying + ledger.is_wanted(weights, rules.until),
        last_used=weights.last_used,
        stays_until=weights.opened_at + min(weights.open_seconds, rules.min_residency_seconds),
        reopen_seconds=weights.open_seconds,
    )


def _context(instance: Instance, rules: Rules) -> Context:
    return Context(
        key=instance,
        private_bytes=instance.private_bytes,
        parkable_bytes=instance.parkable_bytes,
        last_used=instance.last_used,
        stays_until=instance.opened_at + min(instance.open_seconds, rules.min_residency_seconds),
        reopen_seconds=instance.open_seconds,
    )
