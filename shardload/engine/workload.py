"""What one engine has to do, and how a step of it is done. Everything here runs on the lane.

A sequence is queued until a slot and enough KV cells are there, and runs from then until it ends.
Its prompt, its own tokens and what must be computed again after a pause are all the same to a step: known
tokens that are not in the KV cache yet.

What is computed depends in its last digits on where in the cache its cells are, and a draw may turn on them.
So a seeded sequence runs by itself, from an empty cache; other engines take turns with it as ever.
"""

from __future__ import annotations

import logging
from bisect import insort
from operator import attrgetter
from time import perf_counter

from shardload.engine.embedding import EmbeddingJob, EmbeddingQueue
from shardload.engine.logprobs import RawDistribution
from shardload.engine.pace import Pace
from shardload.engine.request import Delta
from shardload.engine.runner import Run, Runner
from shardload.engine.scheduler import compose
from shardload.engine.sequence import Sequence
from shardload.engine.slots import Placement, Slot, SlotTable
from shardload.engine.stats import EngineStats
from shardload.errors import NativeError, PromptTooLong, RequestError, ShardloadError

logger = logging.getLogger("shardload.engine")

# A seeded sequence has chunks that no measurement changes.
SOLO_CHUNK_TOKENS = 64
# Cells kept free for each sequence at admission, so that a new one does not at once drive out another.
HEADROOM_TOKENS = 16
# A prefix that a running sequence is computing is worth waiting for from this length on.
AWAITED_PREFIX_TOKENS = 32

Outbox = list[tuple[Sequence, Delta | ShardloadError]]


class Workload:
    """The sequences and embeddings of one runner; what they produce goes into the lane's ``outbox``."""

    def __init__(
        self, name: str, runner: Runner, outbox: Outbox, *, weight: float, output_limit_tokens: int
    ) -> None:
        self.name, self.runner, self.weight = name, runner, weight
        self.stats = EngineStats()
        self.virtual_seconds = 0.0
        self.was_ready = False
        self._outbox = outbox
        self._output_limit = output_limit_tokens
        self._queue: list[Sequence] = []
        self._running: list[Sequence] = []
        self._ready: list[Sequence] = []
        self._slots = SlotTable(runner.slots)
        self._embeddings = EmbeddingQueue(runner, self._slots)
        self._embeddings_turn = True
        self.pace = Pace()
        self._parts = 1
        self._pieces: dict[int, bytes] = {}
        self._end_tokens: set[int] = set()

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    # -- what comes in

    def accept(self, sequence: Sequence) -> None:
        """Take a new sequence into the queue."""
        if sequence.cancelled:
            return
        if sequence.completion_limit <= 0:
            self._finish_early(sequence)
            return
        insort(self._queue, sequence, key=attrgetter("arrival"))
        self._count()

    def accept_job(self, job: EmbeddingJob) -> None:
        self._embeddings.add(job)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a cancelled sequence: its slot is free at once."""
        if not sequence.done:
            self._leave(sequence)

    def fail_all(self, error: ShardloadError) -> None:
        """End everything with an error; the runner is not touched."""
        for sequence in [*self._running, *self._queue]:
            self._fail(sequence, error)
        self._embeddings.fail_all(error)

    # -- what there is to do

    def prepare(self) -> bool:
        """Admit what can be admitted; whether there is anything to compute."""
        for sequence in self._running:
            sequence.may_go_on(self._output_limit)
        if self._queue:
            self._admit()
        self._ready = [sequence for sequence in self._running if not sequence.stalled]
        return bool(self._ready) or self._embeddings.is_ready()

    @property
    def only_generates(self) -> bool:
        """Whether the next step is one token for each sequence, none of which must repeat to the bit."""
        if self._embeddings or not self._ready:
            return False
        return all(sequence.pending_tokens == 1 and not sequence.solo for sequence in self._ready)

    def divide_cores(self, parts: int) -> None:
        """Use one of so many parts of the cores from the next step on."""
        self._parts = parts
        self.runner.divide_cores(parts)

    def step(self, number: int, *, crowded: bool) -> None:
        """One decode, and what follows from it; ``crowded`` when other engines have running sequences."""
        if (self._embeddings_turn or not self._ready) and self._embeddings.is_ready():
            self._embeddings_turn = False
            self._embed()
            return
        self._embeddings_turn = True
        chunk = self.pace.shared_chunk_tokens()
        budget = self.runner.batch_tokens
        lonely = chunk if crowded else self.pace.lonely_chunk_tokens(budget)
        if any(sequence.solo for sequence in self._ready):
            lonely = budget
        batch = compose(
            self._ready,
            budget_tokens=min(budget, max(lonely, self.runner.slots)),
            chunk_tokens=chunk,
            solo_chunk_tokens=min(budget, SOLO_CHUNK_TOKENS),
        )
        self._compute(batch, number)

    # -- admission

    def _admit(self) -> None:
        # One that was parked comes back when its reader has taken half of what it was behind.
        near = self._output_limit // 2 + 1
        reserved = 1 if self._embeddings_turn and self._embeddings else 0
        for sequence in list(self._queue):
            if sequence.stalled and not sequence.may_go_on(near):
                continue
            placement = self._placement(sequence, reserved)
            while placement is None and self._park():
                placement = self._placement(sequence, reserved)
            if placement is None:
                break
            if self._is_worth_waiting(sequence, placement):
                reserved += 1
                continue
            self._queue.remove(sequence)
            try:
                self._start(sequence, placement)
            except Exception as error:
                self._fail(sequence, self._explained(error))
        self._count()

    def _placement(self, sequence: Sequence, reserved: int) -> Placement | None:
        """Where a sequence could start now, if anywhere."""
        if self._running and (sequence.solo or self._running[0].solo):
            return None
        if self._slots.idle_count <= reserved:
            return None
        placement = self._slots.place(sequence.tokens, reuse=not sequence.solo)
        return placement if placement is not None and self._fits(sequence, placement) else None

    def _park(self) -> bool:
        """Take the slot of a sequence whose reader is behind, for one that can use it."""
        for sequence in self._running:
            if sequence.stalled:
                self._pause(sequence)
                return True
        return False

    def _fits(self, sequence: Sequence, placement: Placement) -> bool:
        """Whether the cells suffice, idle caches not counted. What runs alone is always tried."""
        if not self._running:
            return True
        used = sum(len(other.tokens) - other.shared_tokens for other in self._running)
        needed = len(sequence.tokens) - placement.shared_tokens
        headroom = HEADROOM_TOKENS * (len(self._running) + 1)
        return used + needed + headroom <= self.runner.ctx_tokens

    def _is_worth_waiting(self, sequence: Sequence, placement: Placement) -> bool:
        if not self._running:
            return False
        expected = self._slots.expected_prefix(sequence.tokens)
        return expected - placement.cached_tokens >= AWAITED_PREFIX_TOKENS

    def _start(self, sequence: Sequence, placement: Placement) -> None:
        request = sequence.request
        if sequence.sampler is None and not request.sampling.takes_the_maximum:
            sequence.sampler = self.runner.sampler(request.sampling, sequence.tokens)
        if sequence.solo:
            for slot in self._slots.slots:
                self._empty(slot)
        cached = self._bring_prefix(placement)
        sequence.slot = self._slots.take(placement, sequence.tokens, cached)
        sequence.shared_tokens = placement.shared_tokens if cached else 0
        self._running.append(sequence)
        if sequence.admitted_at is None:
            sequence.admitted_at = perf_counter()
            sequence.cached_tokens = cached
            self.stats.prompt_tokens_total += sequence.prompt_tokens
            self.stats.cached_tokens_total += cached

    def _bring_prefix(self, placement: Placement) -> int:
        """Bring the slot's KV to the cached part of the prompt; the number of tokens that it then holds."""
        runner, slot, cached = self.runner, placement.slot, placement.cached_tokens
        try:
            if placement.source is not None:
                self._empty(slot)
                runner.share(placement.source.index, slot.index, cached)
            if runner.forget(slot.index, cached):
                return cached
        except ValueError:  # a cache of separate parts
            pass
        # A recurrent state cannot go back: it can be continued, not shared in part.
        self._slots.can_share = False
        self._empty(slot)
        return 0

    def _empty(self, slot: Slot) -> None:
        slot.clear()
        self.runner.forget(slot.index)

    # -- a step

    def _compute(self, batch: list[tuple[Sequence, int]], number: int) -> None:
        runs = []
        tokens_in_batch = 0
        for sequence, count in batch:
            slot = sequence.slot
            assert slot is not None
            start = slot.length
            end = start + count
            tokens_in_batch += count
            tokens = sequence.tokens
            runs.append(Run(slot.index, start, tokens[start:end], "last" if end == len(tokens) else "none"))
        began = perf_counter()
        try:
            fits = self.runner.decode(runs)
        except Exception as error:
            self._lose([sequence for sequence, _ in batch], error)
            return
        if not fits:
            self._make_room()
            return
        self.stats.decode_steps_total += 1
        self.pace.note(tokens_in_batch, len(batch), perf_counter() - began, self._parts)
        self._sample(batch, number)

    def _sample(self, batch: list[tuple[Sequence, int]], number: int) -> None:
        now = perf_counter()
        row = 0
        for sequence, count in batch:
            slot = sequence.slot
            assert slot is not None
            slot.length += count
            sequence.last_step = number
            if slot.length < len(sequence.tokens):
                continue
            try:
                self._extend(sequence, row, now)
            except Exception as error:
                self._fail(sequence, self._explained(error))
            row += 1

    def _extend(self, sequence: Sequence, row: int, now: float) -> None:
        runner = self.runner
        top = sequence.request.top_logprobs
        distribution = RawDistribution(runner.logits(row), top) if top is not None else None
        sampler = sequence.sampler
        token = sampler.sample(row) if sampler is not None else int(runner.logits(row).argmax())
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._learn(token)
        is_end = token in self._end_tokens
        logprob = None
        if distribution is not None and (not is_end or sequence.request.ignore_eos):
            logprob = distribution.of(token, self._piece)
        before = sequence.completion_tokens
        delta = sequence.append(token, piece, is_end, logprob, now)
        self.stats.completion_tokens_total += sequence.completion_tokens - before
        if delta is not None:
            self._outbox.append((sequence, delta))
            if delta.finish is not None:
                self.stats.finished_total += 1
                self._leave(sequence)

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        return piece if piece is not None else self._learn(token)

    def _learn(self, token: int) -> bytes:
        if self.runner.is_end(token):
            self._end_tokens.add(token)
        piece = self._pieces[token] = self.runner.piece(token)
        return piece

    def _make_room(self) -> None:
        """The KV cache was full: give up what is dearest to keep and cheapest to compute again."""
        cache = self._slots.oldest_cache()
        if cache is not None:
            self._empty(cache)
            return
        if len(self._running) > 1:
            self._empty(self._pause(max(self._running, key=attrgetter("arrival"))))
            return
        for sequence in list(self._running):
            if sequence.completion_tokens:
                self._outbox.append((sequence, sequence.finish("length", perf_counter())))
                self.stats.finished_total += 1
                self._leave(sequence)
            else:
                self._fail(sequence, PromptTooLong(sequence.prompt_tokens, sequence.computed_tokens))

    def _pause(self, sequence: Sequence) -> Slot:
        """Back into the queue; the slot that it had keeps its content until that is needed."""
        logger.debug("%s: paused a sequence of %d tokens", self.name, len(sequence.tokens))
        self.stats.paused_total += 1
        slot = sequence.slot
        assert slot is not None
        self._running.remove(sequence)
        sequence.slot, sequence.shared_tokens = None, 0
        self._slots.release(slot)
        insort(self._queue, sequence, key=attrgetter("arrival"))
        self._count()
        return slot

    # -- embeddings

    def _embed(self) -> None:
        try:
            fits = self._embeddings.step(self.stats)
        except Exception as error:
            self._embeddings.fail_first(self._explained(error))
            return
        if fits:
            return
        if self._running or self._slots.oldest_cache() is not None:
            self._make_room()
        else:
            self._embeddings.fail_first(RequestError("the prompt does not fit the context: raise --ctx"))

    # -- ends

    def _finish_early(self, sequence: Sequence) -> None:
        """Nothing was asked for: no decode."""
        now = perf_counter()
        self._outbox.append((sequence, sequence.finish("length", now)))
        self.stats.finished_total += 1
        sequence.done = True

    def _lose(self, sequences: list[Sequence], error: Exception) -> None:
        """A decode failed: its sequences end, and nobody knows what their slots hold."""
        explained = self._explained(error)
        slots = [sequence.slot for sequence in sequences if sequence.slot is not None]
        for sequence in sequences:
            self._fail(sequence, explained)
        for slot in slots:
            self._empty(slot)

    def _fail(self, sequence: Sequence, error: ShardloadError) -> None:
        if sequence.done:
            return
        self.stats.failed_total += 1
        self._outbox.append((sequence, error))
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        sequence.done = True
        slot = sequence.slot
        if slot is not None:
            self._running.remove(sequence)
            sequence.slot = None
            self._slots.release(slot)
        elif sequence in self._queue:
            self._queue.remove(sequence)
        sampler, sequence.sampler = sequence.sampler, None
        if sampler is not None:
            sampler.close()
        self._count()

    def _count(self) -> None:
        self.stats.queued, self.stats.running = len(self._queue), len(self._running)

    def _explained(self, error: Exception) -> ShardloadError:
        """The error as its readers get it; one that nobody meant is logged with its traceback."""
        if isinstance(error, ShardloadError):
            logger.warning("%s: %s", self.name, error)
            return error
        logger.error("%s: the engine failed", self.name, exc_info=error)
        failed = NativeError(f"the engine of {self.name!r} failed: {error!r}")
        failed.__cause__ = error
        return failed
