"""What a turn decided: the ledger has noted it, the effects are still to come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shardload.errors import InsufficientMemory
from shardload.library.holdings import Instance, Waiter, Weights
from shardload.library.ledger import Ledger
from shardload.library.relief import PageOut, Relief


@dataclass(frozen=True, slots=True)
class Resize:
    """Another share of memory for weights: None for all of them."""

    weights: Weights
    limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Pages to send away; a page-out of weights in use takes only what prompts use."""

    weights: Weights
    keep_bytes: int


@dataclass(slots=True)
class Actions:
    """Effects to begin; grants and failures are for the requests that wait."""

    grants: list[tuple[Instance, tuple[Waiter, ...]]] = field(default_factory=list)
    failures: list[tuple[tuple[Waiter, ...], InsufficientMemory]] = field(default_factory=list)
    opens: list[Instance] = field(default_factory=list)
    bring_backs: list[Weights] = field(default_factory=list)
    seconds: list[Weights] = field(default_factory=list)
    """Weights whose second layout prompts may use or no longer use, as noted."""
    leaves: list[Leave] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    parks: list[Instance] = field(default_factory=list)
    closes: list[Instance] = field(default_factory=list)
    evicted: list[Weights] = field(default_factory=list)
    """Weights that are closed as soon as their instances are, which are among ``closes``."""
    measure: bool = False
    reserved_for: Instance | None = None
    """The instance that nobody may pass."""
    next_at: float = math.inf
    """When to decide again, if nothing happens before."""

    def look_again(self, at: float) -> None:
        """Have the next turn at a time at the latest."""
        self.next_at = min(self.next_at, at)

    def take(self, ledger: Ledger, relief: Relief) -> None:
        """Begin what was chosen to leave."""
        for each in (*relief.page_outs, *relief.seconds):
            self._page_out(each)
        for context in relief.parks:
            assert isinstance(context.key, Instance)
            context.key.begin_park()
            self.parks.append(context.key)
        for context in relief.contexts:
            assert isinstance(context.key, Instance)
            self._close(ledger, context.key)
        for weights in relief.weights:
            assert isinstance(weights, Weights)
            self.evict(ledger, weights)

    def evict(self, ledger: Ledger, weights: Weights) -> None:
        """Begin to close weights with everything on them, and to drop their pages."""
        for instance in [each for each in weights.instances if each.idle]:
            self._close(ledger, instance)
        weights.closes = weights.drop_pages = True
        self.evicted.append(weights)

    def resize(self, weights: Weights, limit_bytes: int | None) -> None:
        """Begin to give weights another share: what more they may have counts from now on."""
        present = weights.limit_bytes
        if limit_bytes is not None and (present is None or limit_bytes < present):
            mapped_bytes = weights.resident_bytes + weights.second_bytes
            weights.begin_move(max(mapped_bytes - limit_bytes, 0))
        else:
            weights.begin_move(0)
            weights.limit_bytes = limit_bytes
        if limit_bytes is not None:
            self.allow_second(weights, False)
        self.resizes.append(Resize(weights, limit_bytes))

    def allow_second(self, weights: Weights, allowed: bool) -> None:
        """Let prompts use the second layout, or no longer."""
        if weights.second_allowed != allowed:
            self.seconds.append(weights)
        weights.allow_second(allowed)

    def _page_out(self, page_out: PageOut) -> None:
        weights = page_out.holding
        assert isinstance(weights, Weights)
        weights.begin_move(page_out.nbytes)
        self.allow_second(weights, False)
        keep_bytes = page_out.keep_bytes + weights.stuck_bytes if weights.is_measured else weights.size_bytes
        self.leaves.append(Leave(weights, keep_bytes))

    def _close(self, ledger: Ledger, instance: Instance) -> None:
        ledger.begin_close(instance, with_weights=False)
        self.closes.append(instance)
