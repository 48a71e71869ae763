"""Whether a model fits: whole, or only streaming from disk with a share of its weights in memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shardload.errors import AllPinned, InsufficientMemory

LEAST_SHARE = 0.05
"""With less of its weights than this in memory nothing is gained by streaming over not answering."""


def least_share_bytes(size_bytes: int, layer_bytes: int) -> int:
    """What a streaming model must have of its weights at the least."""
    return min(size_bytes, max(math.ceil(LEAST_SHARE * size_bytes), layer_bytes))


def must_stream(
    name: str,
    size_bytes: int,
    fixed_bytes: int,
    least_bytes: int,
    budget_bytes: int,
    pinned_bytes: Mapping[str, int],
) -> bool:
    """Whether a model has no room for all of its weights beside what pinned ones have in memory.

    ``fixed_bytes`` is what it takes beside its weights. Raises InsufficientMemory where not even
    ``least_bytes`` of the weights fit alone, AllPinned where pinned models are in the way.
    """
    others_bytes = sum(pinned_bytes.values())
    if fixed_bytes + size_bytes + others_bytes <= budget_bytes:
        return False
    needed_bytes = fixed_bytes + least_bytes
    if needed_bytes > budget_bytes:
        raise InsufficientMemory(name, needed_bytes, budget_bytes)
    if needed_bytes + others_bytes > budget_bytes:
        raise AllPinned(name, needed_bytes, budget_bytes, sorted(pinned_bytes))
    return True


def renamed(error: InsufficientMemory, name: str) -> InsufficientMemory:
    """The same error for another name of the model: each request raises its own."""
    if isinstance(error, AllPinned):
        return AllPinned(name, error.needed_bytes, error.budget_bytes, error.pinned)
    return InsufficientMemory(name, error.needed_bytes, error.budget_bytes)
