"""Which idle models leave when another needs their memory. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.errors import AllPinned, InsufficientMemory


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle instance that may leave; the bytes of its weights are freed with their last instance."""

    key: Any
    """The caller's name for it."""
    weights: Hashable
    private_bytes: int
    weights_bytes: int
    weights_instances: int
    """How many instances hold the weights, this one and ones that are no candidates included."""
    last_used: float
    stays_until: float
    """A just-opened instance is not sent away before this time."""
    reopen_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Victims that free enough together; without any, ``retry_at`` tells when a just-opened one may leave."""

    victims: tuple[Candidate, ...] = ()
    retry_at: float | None = None


def check_fits(name: str, needed_bytes: int, budget_bytes: int, pinned_bytes: Mapping[str, int]) -> None:
    """Raise InsufficientMemory for what cannot fit even alone, AllPinned where pinned models are in the way.

    ``pinned_bytes`` holds what each pinned model beside this one has in memory.
    """
    if needed_bytes > budget_bytes:
        raise InsufficientMemory(name, needed_bytes, budget_bytes)
    if needed_bytes + sum(pinned_bytes.values()) > budget_bytes:
        raise AllPinned(name, needed_bytes, budget_bytes, sorted(pinned_bytes))


def plan(bytes_to_free: int, candidates: Sequence[Candidate], now: float) -> Plan:
    """Choose the least recently used candidates that free enough, and none that need not go.

    Of candidates used at the same time, the one that is quickest to bring back goes first.
    """
    order = sorted(candidates, key=lambda candidate: (candidate.last_used, candidate.reopen_seconds))
    chosen: list[Candidate] = []
    for candidate in order:
        if candidate.stays_until > now:
            continue
        chosen.append(candidate)
        if freed_bytes(chosen) >= bytes_to_free:
            return Plan(tuple(_needed_only(chosen, bytes_to_free)))
    staying = [candidate.stays_until for candidate in order if candidate.stays_until > now]
    if staying and freed_bytes(order) >= bytes_to_free:
        return Plan(retry_at=min(staying))
    return Plan()


def freed_bytes(victims: Sequence[Candidate]) -> int:
    """What these free together."""
    leaving = Counter(victim.weights for victim in victims)
    whole = {
        victim.weights: victim.weights_bytes
        for victim in victims
        if leaving[victim.weights] == victim.weights_instances
    }
    return sum(victim.private_bytes for victim in victims) + sum(whole.values())


def _needed_only(chosen: list[Candidate], bytes_to_free: int) -> list[Candidate]:
    """Spare those that are too small to matter beside a later one, the most recently used first."""
    for candidate in reversed(chosen[:-1]):
        rest = [other for other in chosen if other is not candidate]
        if freed_bytes(rest) >= bytes_to_free:
            chosen = rest
    return chosen
