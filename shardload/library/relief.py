"""What leaves memory, and in which order, when something else needs it. Pure.

Least harm first: pages that only prompts use, then pages of idle models but for a share of every layer, KV
states and contexts that nobody uses, the rest of the pages, and whole models last.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

READ_BYTES_PER_SECOND = 1e9
"""What bringing pages back is reckoned with; only ratios matter."""
LEAST_COST_SECONDS = 1e-3

Kind = Literal["second", "pages", "park", "context", "weights"]


@dataclass(frozen=True, slots=True)
class Context:
    """An idle context that may be parked and closed."""

    key: Hashable
    private_bytes: int
    parkable_bytes: int = 0
    """The part that comes free while the context stays."""
    last_used: float = 0.0
    stays_until: float = -math.inf
    """A just-opened one is not sent away before this time."""
    reopen_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Holding:
    """Weights from which something may be taken."""

    key: Hashable
    active: bool = False
    """Steps may run on it: then only its second layout and its idle contexts may leave."""
    second_bytes: int = 0
    pages_bytes: int = 0
    """Resident pages of its own that can be sent away."""
    kept_bytes: int = 0
    """How much of them stays in the first round."""
    closing_bytes: int = 0
    """What only closing gives back."""
    contexts: tuple[Context, ...] = ()
    others: int = 0
    """How many contexts, or wishes for one, hold it beside ``contexts``."""
    last_used: float = 0.0
    stays_until: float = -math.inf
    reopen_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, and the bytes that it gives back."""

    kind: Kind
    holding: Holding
    nbytes: int
    context: Context | None = None
    stays_until: float = -math.inf
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class PageOut:
    """Pages to send away, until ``keep_bytes`` of those that can be sent are left."""

    holding: Hashable
    keep_bytes: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Relief:
    """What to do, at most one thing for each target; without any, when a just-opened one may leave."""

    seconds: tuple[PageOut, ...] = ()
    """Of weights in use: their second layouts."""
    page_outs: tuple[PageOut, ...] = ()
    parks: tuple[Context, ...] = ()
    contexts: tuple[Context, ...] = ()
    weights: tuple[Hashable, ...] = ()
    """To be closed with everything on them."""
    freed_bytes: int = 0
    retry_at: float | None = None


@dataclass(slots=True)
class _Choice:
    """The steps chosen so far."""

    wanted_bytes: int
    steps: list[Step] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        return sum(step.nbytes for step in self.steps)

    @property
    def missing_bytes(self) -> int:
        return self.wanted_bytes - self.freed_bytes


def relieve(
    wanted_bytes: int,
    holdings: Sequence[Holding],
    now: float,
    *,
    gently: bool = False,
    partly: bool = False,
) -> Relief:
    """Choose what gives back this much, and nothing that need not go.

    ``gently`` takes nothing that a model could not work on without. Where all together would not be enough,
    nothing leaves, unless it may be ``partly`` enough.
    """
    if wanted_bytes <= 0:
        return Relief()
    choice, later = _Choice(wanted_bytes), []
    for stage in _stages(holdings, wanted_bytes, now, gently=gently):
        for step in stage:
            if step.stays_until > now:
                later.append(step)
            elif choice.missing_bytes > 0:
                choice.steps.append(_part(step, choice.missing_bytes))
    if choice.missing_bytes <= 0 or partly:
        return _merged(_needed_only(choice))
    staying_bytes = sum(step.nbytes for step in later)
    if later and staying_bytes >= choice.missing_bytes:
        return Relief(retry_at=min(step.stays_until for step in later))
    return Relief()


def reclaimable_bytes(holdings: Sequence[Holding]) -> int:
    """What they could give back together, if nothing had just been opened."""
    return sum(step.nbytes for stage in _stages(holdings, 1, 0.0, gently=False) for step in stage)


def _stages(
    holdings: Sequence[Holding], wanted_bytes: int, now: float, *, gently: bool
) -> Iterator[list[Step]]:
    """Steps from the least harm to the most; those of one stage by score, the highest first."""
    idle = [holding for holding in holdings if not holding.active]
    for some in (idle, [holding for holding in holdings if holding.active]):
        yield _ranked([Step("second", each, each.second_bytes) for each in some], wanted_bytes, now)
    first = [Step("pages", each, each.pages_bytes - each.kept_bytes) for each in idle]
    yield _ranked([replace(step, stays_until=step.holding.stays_until) for step in first], wanted_bytes, now)
    contexts = [(holding, context) for holding in holdings for context in holding.contexts]
    parks = [Step("park", holding, each.parkable_bytes, each, each.stays_until) for holding, each in contexts]
    yield _ranked(parks, wanted_bytes, now)
    if gently:
        return
    closes = [
        Step("context", holding, each.private_bytes - each.parkable_bytes, each, each.stays_until)
        for holding, each in contexts
    ]
    yield _ranked(closes, wanted_bytes, now)
    rest = [Step("pages", each, min(each.pages_bytes, each.kept_bytes)) for each in idle]
    yield _ranked([replace(step, stays_until=step.holding.stays_until) for step in rest], wanted_bytes, now)
    whole = [
        Step("weights", each, each.closing_bytes, stays_until=_stays_until(each))
        for each in idle
        if not each.others
    ]
    yield _ranked(whole, wanted_bytes, now)


def _stays_until(holding: Holding) -> float:
    return max([holding.stays_until, *(context.stays_until for context in holding.contexts)])


def _ranked(steps: list[Step], wanted_bytes: int, now: float) -> list[Step]:
    scored = [
        replace(step, score=_score(step, wanted_bytes, now))
        for step in steps
        # A context without memory of its own still keeps its weights from being closed.
        if step.nbytes > 0 or step.kind == "context"
    ]
    return sorted(scored, key=lambda step: (-step.score, _cost_seconds(step, wanted_bytes)))


def _score(step: Step, wanted_bytes: int, now: float) -> float:
    last_used = step.context.last_used if step.context is not None else step.holding.last_used
    idle_seconds = max(now - last_used, 0.0)
    return idle_seconds / _cost_seconds(step, wanted_bytes)


def _cost_seconds(step: Step, wanted_bytes: int) -> float:
    """How long it takes to bring back what leaves."""
    nbytes = step.nbytes if step.kind in ("second", "park") else min(step.nbytes, wanted_bytes)
    seconds = nbytes / READ_BYTES_PER_SECOND
    if step.kind == "context" and step.context is not None:
        seconds = step.context.reopen_seconds
    elif step.kind == "weights":
        seconds += step.holding.reopen_seconds
    return max(seconds, LEAST_COST_SECONDS)


def _part(step: Step, wanted_bytes: int) -> Step:
    """As much of a step as is wanted, where it can be had in parts."""
    return replace(step, nbytes=min(step.nbytes, wanted_bytes)) if step.kind == "pages" else step


def _needed_only(choice: _Choice) -> list[Step]:
    """Spare what a later, larger step makes unnecessary; what does more harm is spared first."""
    surplus = max(choice.freed_bytes - choice.wanted_bytes, 0)
    kept: list[Step] = []
    for step in reversed(choice.steps):
        if _is_needed(step, kept):
            kept.append(step)
        elif step.nbytes <= surplus:
            surplus -= step.nbytes
        elif step.kind == "pages":
            kept.append(replace(step, nbytes=step.nbytes - surplus))
            surplus = 0
        else:
            kept.append(step)
    return kept[::-1]


def _is_needed(step: Step, later: Sequence[Step]) -> bool:
    """Whether a step that comes later builds on this one."""
    for other in later:
        if other.holding is not step.holding:
            continue
        if other.kind == "weights" or (other.kind == "pages" == step.kind):
            return True
        if other.kind == "context" and other.context is step.context:
            return True
    return False


def _merged(steps: Sequence[Step]) -> Relief:
    """One thing for each target: what closes is not sent away before."""
    closing = [step.holding for step in steps if step.kind == "weights"]
    closing_keys = {holding.key for holding in closing}
    rest = [step for step in steps if step.holding.key not in closing_keys]
    contexts = [step.context for step in rest if step.kind == "context" and step.context is not None]
    closed_keys = {context.key for context in contexts}
    parks = [step.context for step in rest if step.kind == "park" and step.context is not None]
    pages = [step for step in rest if step.kind in ("second", "pages")]
    page_outs = [_page_out(holding, pages) for holding in dict.fromkeys(step.holding for step in pages)]
    active_keys = {step.holding.key for step in pages if step.holding.active}
    return Relief(
        seconds=tuple(each for each in page_outs if each.holding in active_keys),
        page_outs=tuple(each for each in page_outs if each.holding not in active_keys),
        parks=tuple(context for context in parks if context.key not in closed_keys),
        contexts=tuple(contexts),
        weights=tuple(holding.key for holding in closing),
        freed_bytes=sum(step.nbytes for step in steps),
    )


def _page_out(holding: Holding, steps: Sequence[Step]) -> PageOut:
    own = [step for step in steps if step.holding is holding]
    pages_bytes = sum(step.nbytes for step in own if step.kind == "pages")
    nbytes = sum(step.nbytes for step in own)
    # Pages never leave without the second layout, which page-outs take along.
    return PageOut(holding.key, holding.pages_bytes - pages_bytes, nbytes)
