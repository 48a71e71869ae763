"""llama.cpp's own load of a model, which reads and repacks it as it always does, as the judge of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from shardload.engine import TokenLogprob
from shardload_native.amx import avoid_traps
from shardload_native.library import load

CTX_TOKENS = 512
NEAR_TIE = 0.1
"""Orders of bytes have kernels of their own, which differ by as much: in units of logits."""
FEW_TIES = 0.2
"""The share of tokens that may be decided by that."""


class PlainLoad:
    """One model, loaded without any of ours. Closed by ``close``."""

    def __init__(self, path: Path) -> None:
        avoid_traps(load())  # the same libraries serve both
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=CTX_TOKENS,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            flash_attn=True,
            verbose=False,
        )

    def check(self, prompt: Sequence[int], said: Sequence[TokenLogprob]) -> None:
        """Raise AssertionError unless each token is the one that the plain load takes after those before it.

        Where the two likeliest are as close as kernels differ, either will do; that must be rare.
        """
        assert said, "nothing was said"
        logits = self._logits([*prompt, *(entry.token for entry in said)])[len(prompt) - 1 : -1]
        ties = 0
        for place, (entry, row) in enumerate(zip(said, logits, strict=True)):
            behind = float(row.max() - row[entry.token])
            assert behind < NEAR_TIE, f"token {place} is {behind:.3f} behind the likeliest"
            ties += behind > 0
            logprob = float(row[entry.token] - np.logaddexp.reduce(row))
            assert abs(entry.logprob - logprob) < NEAR_TIE, f"token {place}: {entry.logprob} for {logprob}"
        assert ties <= FEW_TIES * len(said), f"{ties} of {len(said)} tokens differ"

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()

    def _logits(self, tokens: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        self._llama.reset()
        self._llama.eval(list(tokens))
        return np.array(self._llama.scores[: len(tokens)], dtype=np.float64)
