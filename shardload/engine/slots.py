"""Which KV slot a sequence takes, and what of its prompt is there already. Pure: no KV is touched here.

A finished sequence's KV stays in its slot until the slot or its cells are needed. A new prompt takes over the
idle slot whose content it continues, or shares the beginning of any other slot, running or idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Slot:
    """The KV slot ``index`` holds the first ``length`` of ``tokens``."""

    __slots__ = ("busy", "index", "last_used", "length", "tokens")

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: Sequence[int] = ()
        self.length = 0
        self.busy = False
        self.last_used = 0

    def clear(self) -> None:
        """The KV of this slot is gone."""
        self.tokens, self.length = (), 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Take ``slot`` with the first ``cached_tokens`` of the prompt, shared from ``source`` if any."""

    slot: Slot
    cached_tokens: int
    source: Slot | None = None

    @property
    def shared_tokens(self) -> int:
        """Cells that another running sequence holds anyway."""
        return self.cached_tokens if self.source is not None and self.source.busy else 0


def common_prefix(left: Sequence[int], right: Sequence[int], limit: int) -> int:
    """The number of tokens at the beginning of both, at most ``limit``."""
    high = min(len(left), len(right), limit)
    low = 0
    # Bisection over slices: the comparisons run in C, most prompts differ early or not at all.
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SlotTable:
    """The slots of one context."""

    __slots__ = ("_clock", "can_share", "slots")

    def __init__(self, count: int) -> None:
        self.slots = tuple(Slot(index) for index in range(count))
        self.can_share = True
        self._clock = 0

    @property
    def has_idle(self) -> bool:
        return any(not slot.busy for slot in self.slots)

    @property
    def idle_count(self) -> int:
        return sum(not slot.busy for slot in self.slots)

    @property
    def idle_tokens(self) -> int:
        """What idle slots hold; cells that some of them share are counted more than once."""
        return sum(slot.length for slot in self.slots if not slot.busy)

    def place(self, prompt: Sequence[int], *, reuse: bool) -> Placement | None:
        """The best slot for a prompt; None while all are busy. Nothing changes before ``take``."""
        idle = [slot for slot in self.slots if not slot.busy]
        if not idle:
            return None
        # An empty slot first, then the one that nobody has asked for for the longest time.
        target = min(idle, key=lambda slot: (slot.length > 0, slot.last_used))
        if not reuse:
            return Placement(target, 0)
        # The last token is always computed: its logits are needed.
        limit = len(prompt) - 1
        source, cached = target, 0
        for slot in self.slots:
            if slot.busy and not self.can_share:
                continue
            length = common_prefix(slot.tokens, prompt, min(slot.length, limit))
            if length > cached or (length == cached and cached and slot.busy):
                source, cached = slot, length
        if not cached:
            return Placement(target, 0)
        # Going on where an idle slot stands costs nothing; a small part of it is shared, not torn off.
        continues = not source.busy and (
            2 * cached >= source.length or source is target or not self.can_share
        )
        return Placement(source, cached) if continues else Placement(target, cached, source)

    def expected_prefix(self, prompt: Sequence[int]) -> int:
        """The prefix that can be shared once the running sequences have computed all their tokens."""
        limit = len(prompt) - 1
        if not self.can_share:
            return 0
        return max(
            (common_prefix(slot.tokens, prompt, limit) for slot in self.slots if slot.busy),
            default=0,
        )

    def take(self, placement: Placement, tokens: Sequence[int], cached_tokens: int) -> Slot:
        """Give the slot to a sequence; its KV now holds the first ``cached_tokens`` of ``tokens``."""
        slot = placement.slot
        slot.busy, slot.tokens, slot.length = True, tokens, cached_tokens
        return slot

    def release(self, slot: Slot) -> None:
        """The sequence is over; its KV stays until it is needed."""
        self._clock += 1
        slot.busy, slot.last_used = False, self._clock

    def oldest_cache(self) -> Slot | None:
        """The idle slot whose content was used longest ago."""
        cached = [slot for slot in self.slots if not slot.busy and slot.length]
        return min(cached, key=lambda slot: slot.last_used) if cached else None
