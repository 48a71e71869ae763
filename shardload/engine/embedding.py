"""Embeddings: several prompts in one decode, each in a slot of its own for that step.

The vectors are pooled as the model says; a model without pooling gives the vector of its last token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from shardload.engine.runner import Run, Runner
from shardload.engine.slots import Slot, SlotTable
from shardload.engine.stats import EngineStats
from shardload.errors import ShardloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EmbeddingJob:
    """The prompts of one request, whose vectors are computed over as many steps as it takes."""

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

    def fail(self, error: ShardloadError) -> None:
        """Give up, unless whoever asked already has."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def succeed(self) -> None:
        """Hand the vectors over, unless whoever asked has given up."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.vectors)


class EmbeddingQueue:
    """The jobs of one runner, first come first served; lane thread only."""

    __slots__ = ("_jobs", "_runner", "_slots")

    def __init__(self, runner: Runner, slots: SlotTable) -> None:
        self._runner, self._slots = runner, slots
        self._jobs: deque[EmbeddingJob] = deque()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: EmbeddingJob) -> None:
        self._jobs.append(job)

    def is_ready(self) -> bool:
        """Whether a step could be done now; cancelled jobs are dropped on the way."""
        while self._jobs and self._jobs[0].future.cancelled():
            self._jobs.popleft()
        return bool(self._jobs) and self._slots.has_idle

    def step(self, stats: EngineStats) -> bool:
        """Compute what fits one decode of the first job; False when the KV cache has no room."""
        job = self._jobs[0]
        prompts = job.next_prompts(self._slots.idle_count, self._runner.batch_tokens)
        taken = [self._take(prompt) for prompt in prompts]
        try:
            vectors = self._compute([slot.index for slot in taken], prompts)
        finally:
            for slot in taken:
                self._slots.release(slot)
                slot.clear()
                self._runner.forget(slot.index)
        if vectors is None:
            return False
        stats.decode_steps_total += 1
        job.vectors += vectors
        if len(job.vectors) == len(job.prompts):
            self._jobs.popleft()
            job.succeed()
        return True

    def fail_first(self, error: ShardloadError) -> None:
        self._jobs.popleft().fail(error)

    def fail_all(self, error: ShardloadError) -> None:
        while self._jobs:
            self.fail_first(error)

    def _take(self, prompt: Sequence[int]) -> Slot:
        placement = self._slots.place(prompt, reuse=False)
        assert placement is not None
        slot = self._slots.take(placement, prompt, 0)
        self._runner.forget(slot.index)
        return slot

    def _compute(self, slots: list[int], prompts: list[list[int]]) -> list[NDArray[np.float32]] | None:
        runner = self._runner
        runs = [Run(slot, 0, prompt, "all") for slot, prompt in zip(slots, prompts, strict=True)]
        if not runner.decode(runs):
            return None
        if runner.pooled:
            return [normalized(runner.embedding(slot)) for slot in slots]
        ends = np.cumsum([len(prompt) for prompt in prompts])
        rows = runner.token_embeddings(int(ends[-1]))
        return [normalized(rows[end - 1]) for end in ends]


def normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float32 copy of length 1; the zero vector stays what it is."""
    copy = np.array(vector, dtype=np.float32)
    length = float(np.linalg.norm(copy))
    return copy / np.float32(length) if length > 0 else copy
