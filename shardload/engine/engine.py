"""One runner on the lane, as everybody else sees it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence as Tokens
from concurrent.futures import Future
from time import perf_counter
from typing import TYPE_CHECKING

from shardload.engine.embedding import EmbeddingJob
from shardload.engine.request import GenerationRequest
from shardload.engine.runner import Sink
from shardload.engine.sequence import Sequence
from shardload.engine.stats import EngineStats
from shardload.engine.stream import DeltaStream, Mailbox
from shardload.engine.workload import Workload
from shardload.errors import ModelUnavailable, PromptTooLong, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shardload.engine.lane import Lane


class Engine:
    """One runner on the lane; made by ``Lane.attach``. Every method may be called on any thread."""

    def __init__(self, lane: Lane, workload: Workload) -> None:
        self._lane, self._workload = lane, workload
        runner = workload.runner
        self.name = workload.name
        self.ctx_tokens, self.slots = runner.ctx_tokens, runner.slots
        self._n_vocab, self._batch_tokens = runner.n_vocab, runner.batch_tokens
        self._arrivals = itertools.count(1)
        self.detached = False

    @property
    def stats(self) -> EngineStats:
        return self._workload.stats

    def submit(self, request: GenerationRequest, sink: Sink) -> Sequence:
        """Queue a request; its deltas, or one error, go to ``sink`` on the lane thread, which must not block.

        A reader that never calls ``acknowledge`` gets as many deltas as the lane's output limit and no more.
        Raises PromptTooLong and RequestError at once, ModelUnavailable after a detach.
        """
        self._check(request.prompt, self.ctx_tokens)
        if request.max_tokens is not None and request.max_tokens < 0:
            raise RequestError("max_tokens must not be negative", param="max_tokens")
        for token, _ in request.sampling.logit_bias:
            self._check_token(token, "logit_bias")
        sequence = Sequence(
            request,
            sink,
            ctx_tokens=self.ctx_tokens,
            arrival=next(self._arrivals),
            now=perf_counter(),
            notify=self._notify,
        )
        self._lane.post(self._accept, sequence)
        return sequence

    def stream(self, request: GenerationRequest) -> DeltaStream:
        """Queue a request and read it on the running event loop."""
        mailbox = Mailbox(self._lane.poster(asyncio.get_running_loop()))
        return DeltaStream(mailbox, self.submit(request, mailbox))

    def embed(self, prompts: Tokens[Tokens[int]]) -> Future[list[NDArray[np.float32]]]:
        """One vector of length 1 for each prompt (``asyncio.wrap_future`` awaits it; cancelling it works).

        A prompt is pooled in one batch, so that it can be no longer than that. Raises as ``submit`` does.
        """
        limit = min(self.ctx_tokens, self._batch_tokens)
        for prompt in prompts:
            self._check(prompt, limit)
        future: Future[list[NDArray[np.float32]]] = Future()
        if prompts:
            self._lane.post(self._accept_job, EmbeddingJob(prompts, future))
        else:
            future.set_result([])
        return future

    def park(self) -> Future[int]:
        """Save and empty the idle slots, and give the KV memory back where all are; the bytes of that.

        Nothing is interrupted: while a sequence runs, the memory stays. Without a parking, what was in the
        slots is computed again when it is asked for.
        """
        done: Future[int] = Future()
        self._lane.post(self._park, done)
        return done

    def _check(self, prompt: Tokens[int], limit_tokens: int) -> None:
        if self.detached:
            raise self._gone()
        if not prompt:
            raise RequestError("the prompt is empty: it must have at least one token", param="prompt")
        if len(prompt) > limit_tokens:
            raise PromptTooLong(len(prompt), limit_tokens)
        # One token that is not in the vocabulary would fail the whole batch.
        self._check_token(min(prompt), "prompt")
        self._check_token(max(prompt), "prompt")

    def _check_token(self, token: int, param: str) -> None:
        if not 0 <= token < self._n_vocab:
            raise RequestError(f"token {token} is not in the vocabulary of {self._n_vocab}", param=param)

    def _gone(self) -> ModelUnavailable:
        return ModelUnavailable(f"the model {self.name!r} was closed")

    def _notify(self, sequence: Sequence) -> None:
        self._lane.post(self._look_at, sequence)

    # -- on the lane thread

    def _accept(self, sequence: Sequence) -> None:
        self._workload.accept(sequence)
        self._refuse_when_detached()

    def _accept_job(self, job: EmbeddingJob) -> None:
        self._workload.accept_job(job)
        self._refuse_when_detached()

    def _refuse_when_detached(self) -> None:
        if self.detached:
            self._workload.fail_all(self._gone())

    def _look_at(self, sequence: Sequence) -> None:
        if sequence.cancelled:
            self._workload.cancel(sequence)

    def _park(self, done: Future[int]) -> None:
        if not self.detached:
            self._lane.save(self._workload, done, give_back=True)
        elif done.set_running_or_notify_cancel():
            done.set_result(0)

    def _detach(self) -> None:
        self._workload.fail_all(self._gone())
