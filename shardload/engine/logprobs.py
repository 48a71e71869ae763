"""Log-probabilities of a model's own distribution, before any sampler has touched it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from shardload.engine.request import TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RawDistribution:
    """The log-softmax of one row, kept while a sampler works on the row itself."""

    __slots__ = ("_likeliest", "_logprobs")

    def __init__(self, logits: NDArray[np.float32], top: int) -> None:
        shifted = logits - logits.max()
        # A float32 sum over a large vocabulary loses digits that people compare.
        self._logprobs = shifted - np.float32(np.log(np.exp(shifted, dtype=np.float64).sum()))
        self._likeliest = likeliest(logits, top)

    def of(self, token: int, piece: Callable[[int], bytes]) -> TokenLogprob:
        """The entry for the token that was chosen."""
        logprobs = self._logprobs
        raw = piece(token)
        top = tuple((other, piece(other), float(logprobs[other])) for other in self._likeliest)
        return TokenLogprob(token, raw.decode(errors="replace"), raw, float(logprobs[token]), top)


def likeliest(logits: NDArray[np.float32], count: int) -> list[int]:
    """The tokens of the ``count`` largest logits, largest first; of equals the smaller token first."""
    count = min(count, len(logits))
    if count <= 0:
        return []
    top = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
    order = np.lexsort((top, -logits[top]))
    return [int(token) for token in top[order]]
