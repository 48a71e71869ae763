"""Whose turn it is. Pure functions over what waits; the lane carries the decisions out.

Between engines the turn goes to the one that has consumed the least compute time for its weight. A second one
computes beside it where both only generate: a token is bound by memory, and two steps on half of the cores
each keep it busier than two on all of them, which wait for each other at every node of the graph. Within an
engine every step serves whoever has waited longest, together with all that can share the batch: sequences
that generate contribute one token each, prompts fill the rest in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from shardload.engine.pace import Pace


# Shorter steps are over before a second thread is awake.
PAIRED_STEP_SECONDS = 0.004
# The faster of two waits for the slower.
PAIRED_STEP_RATIO = 1.5


class Competitor(Protocol):
    """Something that consumes compute time: ``virtual_seconds`` is what it had, divided by its weight."""

    virtual_seconds: float

    @property
    def only_generates(self) -> bool:
        """Whether its next step is nothing but one token for each of its sequences."""
        ...

    @property
    def pace(self) -> Pace: ...


class Candidate(Protocol):
    """A sequence that could be computed now.

    ``last_step`` is the step in which it was last served, or admitted. A ``solo`` candidate is computed in
    batches of its own, whose shapes depend on its own tokens alone: its prompt in full chunks, everything
    after it token by token, also when it is computed again.
    """

    last_step: int
    solo: bool
    prompt_tokens: int

    @property
    def pending_tokens(self) -> int:
        """Tokens that are known and not computed yet: at least 1."""
        ...

    @property
    def computed_tokens(self) -> int: ...


CompetitorT = TypeVar("CompetitorT", bound=Competitor)
CandidateT = TypeVar("CandidateT", bound=Candidate)


def next_turn(ready: Sequence[CompetitorT]) -> list[CompetitorT]:
    """Who computes now: the one of least virtual time, the first of equals, and at most one beside it."""
    if len(ready) == 1:
        return [ready[0]]
    first = min(ready, key=_virtual_seconds)
    if not first.only_generates:
        return [first]
    beside = [other for other in ready if other is not first and _goes_beside(first, other)]
    return [first, min(beside, key=_virtual_seconds)] if beside else [first]


def _goes_beside(first: Competitor, other: Competitor) -> bool:
    short, long = sorted((first.pace.generation_seconds, other.pace.generation_seconds))
    return (
        other.only_generates
        and short >= PAIRED_STEP_SECONDS
        and long <= PAIRED_STEP_RATIO * short
        # A share of the cores is no way around the share of the time.
        and other.virtual_seconds <= first.virtual_seconds + long
    )


def _virtual_seconds(competitor: Competitor) -> float:
    return competitor.virtual_seconds


def _last_step(candidate: Candidate) -> int:
    return candidate.last_step


def compose(
    ready: Sequence[CandidateT], *, budget_tokens: int, chunk_tokens: int, solo_chunk_tokens: int
) -> list[tuple[CandidateT, int]]:
    """The next batch: candidates, and how many of their pending tokens are computed.

    The one that was served longest ago is always in it, so that each waits for no more steps than there are
    candidates. At most ``budget_tokens`` in all, and ``chunk_tokens`` of prompts where some generate.
    """
    if not ready:
        return []
    oldest = min(ready, key=_last_step)
    if oldest.solo:
        return [(oldest, _solo_tokens(oldest, min(solo_chunk_tokens, budget_tokens)))]
    if budget_tokens == 1:
        return [(oldest, 1)]
    generating: list[CandidateT] = []
    prompts: list[CandidateT] = []
    for candidate in ready:
        if not candidate.solo:
            (generating if candidate.pending_tokens == 1 else prompts).append(candidate)
    if not prompts and len(generating) <= budget_tokens:
        return [(candidate, 1) for candidate in generating]
    return _mix(generating, prompts, budget_tokens, chunk_tokens)


def _solo_tokens(candidate: Candidate, chunk_tokens: int) -> int:
    in_prompt = candidate.prompt_tokens - candidate.computed_tokens
    return min(chunk_tokens, in_prompt) if in_prompt > 1 else 1


def _mix(
    generating: list[CandidateT], prompts: list[CandidateT], budget_tokens: int, chunk_tokens: int
) -> list[tuple[CandidateT, int]]:
    # However many generate, prompts get a quarter of the batch: else none would ever begin.
    reserve = max(1, budget_tokens // 4) if prompts else 0
    generating.sort(key=_last_step)
    batch = [(candidate, 1) for candidate in generating[: budget_tokens - reserve]]
    room = budget_tokens - len(batch)
    if generating:
        room = min(room, max(1, chunk_tokens))
    prompts.sort(key=_last_step)
    for candidate in prompts:
        if room <= 0:
            break
        count = min(candidate.pending_tokens, room)
        batch.append((candidate, count))
        room -= count
    return batch
