"""What one engine has to do, and how a step of it is done. Everything here runs on the lane.

A sequence is queued until a slot and enough KV cells are there, and runs from then until it ends.
Its prompt, its own tokens and what must be computed again after a pause are all the same to a step: known
tokens that are not in the KV cache yet.

What is computed depends in its last digits on where in the cache its cells are, and a draw may turn on them.
So a seeded sequence runs by itself, from an empty cache; other engines take turns with it as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from time import perf_counter

from shardload.engine.admission import Admission
from shardload.engine.cache import Cache
from shardload.engine.embedding import EmbeddingJob, EmbeddingQueue
from shardload.engine.logprobs import RawDistribution
from shardload.engine.pace import Pace
from shardload.engine.parking import Parking
from shardload.engine.roster import Outbox, Roster
from shardload.engine.runner import Run, Runner
from shardload.engine.scheduler import compose
from shardload.engine.sequence import Sequence
from shardload.engine.stats import EngineStats
from shardload.engine.vocabulary import Vocabulary
from shardload.errors import PromptTooLong, RequestError, ShardloadError

# A seeded sequence has chunks that no measurement changes. Each is too short for the weights' second order,
# whose sums differ in their last digits, and which is there or not as memory has room for it.
SOLO_CHUNK_TOKENS = 64


class Workload:
    """The sequences and embeddings of one runner; what they produce goes into the lane's ``outbox``.

    ``wake`` has the lane look again; it may be called on any thread.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        outbox: Outbox,
        *,
        weight: float,
        output_limit_tokens: int,
        parking: Parking | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.runner, self.weight, self.parking = name, runner, weight, parking
        self.stats = EngineStats()
        self.virtual_seconds = 0.0
        self.was_ready = False
        self.cache = Cache(name, runner, self.stats, parking)
        self._roster = Roster(name, self.cache.table, self.stats, outbox)
        self._admission = Admission(runner, self._roster, self.cache, wake)
        self._vocabulary = Vocabulary(runner)
        self._output_limit = output_limit_tokens
        self._ready: list[Sequence] = []
        self._embeddings = EmbeddingQueue(runner, self.cache.table)
        self._embeddings_turn = True
        self.pace = Pace()
        self._parts = 1

    @property
    def is_running(self) -> bool:
        return bool(self._roster.running)

    # -- what comes in

    def accept(self, sequence: Sequence) -> None:
        """Take a new sequence into the queue."""
        self._roster.accept(sequence)

    def accept_job(self, job: EmbeddingJob) -> None:
        self._embeddings.add(job)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a cancelled sequence: its slot is free at once."""
        self._roster.leave(sequence)

    def fail_all(self, error: ShardloadError) -> None:
        """End everything with an error; the runner is not touched."""
        self._roster.fail_all(error)
        self._embeddings.fail_all(error)

    # -- what there is to do

    def prepare(self) -> bool:
        """Admit what can be admitted; whether there is anything to compute."""
        for sequence in self._roster.running:
            sequence.may_go_on(self._output_limit)
        if self._roster.queue:
            self._admission.admit(
                self._output_limit, reserved=1 if self._embeddings_turn and self._embeddings else 0
            )
        self._ready = [sequence for sequence in self._roster.running if not sequence.stalled]
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
                self._roster.fail(sequence, self._roster.explained(error))
            row += 1

    def _extend(self, sequence: Sequence, row: int, now: float) -> None:
        runner = self.runner
        top = sequence.request.top_logprobs
        distribution = RawDistribution(runner.logits(row), top) if top is not None else None
        sampler = sequence.sampler
        token = sampler.sample(row) if sampler is not None else int(runner.logits(row).argmax())
        piece = self._vocabulary.piece(token)
        is_end = self._vocabulary.is_end(token)
        logprob = None
        if distribution is not None and (not is_end or sequence.request.ignore_eos):
            logprob = distribution.of(token, self._vocabulary.piece)
        delta = sequence.append(token, piece, is_end, logprob, now)
        if delta is not None:
            self._roster.outbox.append((sequence, delta))
            if delta.finish is not None:
                self._roster.leave(sequence)

    def _make_room(self) -> None:
        """The KV cache was full: give up what is dearest to keep and cheapest to compute again."""
        cache = self.cache.table.oldest_cache()
        if cache is not None:
            self.cache.empty(cache)
            return
        if len(self._roster.running) > 1:
            self.cache.empty(self._roster.pause(max(self._roster.running, key=attrgetter("arrival"))))
            return
        for sequence in list(self._roster.running):
            if sequence.completion_tokens:
                self._roster.finish(sequence, "length")
            else:
                self._roster.fail(sequence, PromptTooLong(sequence.prompt_tokens, sequence.computed_tokens))

    def _lose(self, sequences: list[Sequence], error: Exception) -> None:
        """A decode failed: its sequences end, and nobody knows what their slots hold."""
        explained = self._roster.explained(error)
        slots = [sequence.slot for sequence in sequences if sequence.slot is not None]
        for sequence in sequences:
            self._roster.fail(sequence, explained)
        for slot in slots:
            self.cache.empty(slot)

    # -- embeddings

    def _embed(self) -> None:
        try:
            fits = self._embeddings.step(self.stats)
        except Exception as error:
            self._embeddings.fail_first(self._roster.explained(error))
            return
        if fits:
            return
        if self._roster.running or self.cache.table.oldest_cache() is not None:
            self._make_room()
        else:
            self._embeddings.fail_first(RequestError("the prompt does not fit the context: raise --ctx"))
