"""Embeddings: several prompts in one decode, each in a slot of its own for that step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from shardload.engine.runner import Run, Runner

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EmbeddingJob:
    """Prompts whose vectors are computed over as many steps as it takes; lane thread only."""

    __slots__ = ("future", "prompts", "vectors")

    def __init__(self, prompts: Sequence[Sequence[int]], future: Future[list[NDArray[np.float32]]]) -> None:
        self.prompts = [list(prompt) for prompt in prompts]
        self.vectors: list[NDArray[np.float32]] = []
        self.future = future

    def next_prompts(self, slots: int, batch_tokens: int) -> list[list[int]]:
        """The prompts of the next step: as many as there are slots and batch for, at least one."""
        chosen: list[list[int]] = []
        tokens = 0
        for prompt in self.prompts[len(self.vectors) :]:
            tokens += len(prompt)
            if chosen and (tokens > batch_tokens or len(chosen) == slots):
                break
            chosen.append(prompt)
        return chosen

    @property
    def complete(self) -> bool:
        return len(self.vectors) == len(self.prompts)


def compute_embeddings(
    runner: Runner, slots: Sequence[int], prompts: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]] | None:
    """Vectors of length 1, one for each prompt; None when the KV cache has no room. The slots are empty.

    A model without pooling gives the vector of its last token.
    """
    runs = [Run(slot, 0, prompt, "all") for slot, prompt in zip(slots, prompts, strict=True)]
    if not runner.decode(runs):
        return None
    if runner.pooling == "none":
        ends = np.cumsum([len(prompt) for prompt in prompts])
        rows = runner.token_embeddings(int(ends[-1]))
        return [normalized(rows[end - 1]) for end in ends]
    return [normalized(runner.embedding(slot)) for slot in slots]


def normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float32 copy of length 1; the zero vector stays what it is."""
    copy = np.array(vector, dtype=np.float32)
    length = float(np.linalg.norm(copy))
    return copy / np.float32(length) if length > 0 else copy
