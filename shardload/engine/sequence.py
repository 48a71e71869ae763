"""One request inside an engine: its tokens, its text, and what its reader has taken of it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, Literal

from shardload.engine.request import Delta, Finish, GenerationRequest, Timings, TokenLogprob, Usage
from shardload.engine.text import TextAssembler

if TYPE_CHECKING:
    from concurrent.futures import Future

    from shardload.engine.parking import Found, State
    from shardload.engine.runner import Sink, TokenSampler
    from shardload.engine.slots import Slot


def goes_on_below(limit: int) -> int:
    """A sequence that was held back at ``limit`` deltas goes on when its reader is fewer than this behind."""
    return limit // 2 + 1


class Sequence:
    """The handle that ``Engine.submit`` gives, and the lane's own record of the same request.

    ``cancel`` and ``acknowledge`` may be called on any thread; everything else belongs to the lane.
    """

    __slots__ = (
        "_notify",
        "acknowledged",
        "admitted_at",
        "arrival",
        "assembler",
        "cached_tokens",
        "cancelled",
        "completion_limit",
        "completion_tokens",
        "done",
        "fetch",
        "first_token_at",
        "flush",
        "found",
        "held_logprobs",
        "held_tokens",
        "last_step",
        "produced",
        "prompt_tokens",
        "request",
        "sampler",
        "shared_from",
        "shared_tokens",
        "sink",
        "slot",
        "solo",
        "stalled",
        "submitted_at",
        "tokens",
    )

    def __init__(
        self,
        request: GenerationRequest,
        sink: Sink,
        *,
        ctx_tokens: int,
        arrival: int,
        now: float,
        notify: Callable[[Sequence], None],
    ) -> None:
        self.request, self.sink, self._notify = request, sink, notify
        self.flush: Callable[[], None] | None = getattr(sink, "flush", None)
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(self.tokens)
        # The last token that fits is one more than the cells: it is sampled and never computed.
        room = ctx_tokens - self.prompt_tokens + 1
        self.completion_limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self.completion_tokens = 0
        self.cached_tokens = 0
        # The cells that it got from another running sequence, and that one's tokens.
        self.shared_tokens = 0
        self.shared_from: Tokens[int] | None = None
        self.solo = request.sampling.seed is not None
        self.assembler = TextAssembler(request.stop)
        self.held_tokens: list[int] = []
        self.held_logprobs: list[TokenLogprob] = []
        self.sampler: TokenSampler | None = None
        self.slot: Slot | None = None
        # What is parked of it, looked for once, and its state as soon as that is in memory.
        self.found: Found | None = None
        self.fetch: Future[State | None] | None = None
        self.arrival, self.last_step = arrival, 0
        self.produced = self.acknowledged = 0
        self.stalled = self.cancelled = self.done = False
        self.submitted_at = now
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None

    def cancel(self) -> None:
        """End the sequence before the next step; its sink hears no more of it. May be repeated."""
        if not (self.cancelled or self.done):
            self.cancelled = True
            self._notify(self)

    def acknowledge(self, count: int = 1) -> None:
        """Say that the reader has taken ``count`` more deltas; called by one thread at a time."""
        self.acknowledged += count
        if self.stalled:
            self._notify(self)

    def may_go_on(self, ahead: int) -> bool:
        """Whether its reader is less than ``ahead`` deltas behind; if not, ``acknowledge`` wakes the lane."""
        if self.produced - self.acknowledged < ahead:
            self.stalled = False
        elif not self.stalled:
            self.stalled = True
            # The reader may have caught up before it could see the flag, and then does not wake the lane.
            self.stalled = self.produced - self.acknowledged >= ahead
        return not self.stalled

    @property
    def computed_tokens(self) -> int:
        """The tokens whose KV is there."""
        return self.slot.length if self.slot is not None else 0

    @property
    def pending_tokens(self) -> int:
        """The tokens that are known and not computed yet."""
        return len(self.tokens) - (self.slot.length if self.slot is not None else 0)

    def append(
        self, token: int, piece: bytes, is_end: bool, logprob: TokenLogprob | None, now: float
    ) -> Delta | None:
        """Take the next token; the delta to be sent, if there is one now."""
        if self.first_token_at is None:
            self.first_token_at = now
        if is_end and not self.request.ignore_eos:
            return self.finish("stop", now)
        self.tokens.append(token)
        self.completion_tokens += 1
        assembler = self.assembler
        text = assembler.feed(piece)
        if logprob is not None:
            self.held_logprobs.append(logprob)
        if assembler.stop_string is None and self.completion_tokens < self.completion_limit:
            if not text:
                self.held_tokens.append(token)
                return None
            self.produced += 1
            if not (self.held_tokens or self.held_logprobs):
                return Delta(text, (token,))
            self.held_tokens.append(token)
            return Delta(text, self._take_tokens(), self._take_logprobs())
        self.held_tokens.append(token)
        return self.finish("length" if assembler.stop_string is None else "stop", now, text)

    def finish(self, reason: Literal["stop", "length"], now: float, text: str = "") -> Delta:
        """The last delta, with whatever was held back."""
        text += self.assembler.finish()
        stop_string = self.assembler.stop_string
        if stop_string is not None:
            reason = "stop"
            self._cut_logprobs(len(text.encode()))
        self.produced += 1
        ended = Finish(reason, stop_string, self._usage(), self._timings(now))
        return Delta(text, self._take_tokens(), self._take_logprobs(), ended)

    def _take_tokens(self) -> tuple[int, ...]:
        tokens = tuple(self.held_tokens)
        self.held_tokens.clear()
        return tokens

    def _take_logprobs(self) -> tuple[TokenLogprob, ...]:
        logprobs = tuple(self.held_logprobs)
        self.held_logprobs.clear()
        return logprobs

    def _cut_logprobs(self, text_bytes: int) -> None:
        """Tokens whose text fell to a stop string have no log-probabilities in the answer either."""
        begin_bytes = 0
        for index, entry in enumerate(self.held_logprobs):
            if begin_bytes >= text_bytes:
                del self.held_logprobs[index:]
                return
            begin_bytes += len(entry.raw)

    def _usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.cached_tokens, self.completion_tokens)

    def _timings(self, now: float) -> Timings:
        admitted = self.admitted_at if self.admitted_at is not None else now
        first = self.first_token_at if self.first_token_at is not None else now
        return Timings(admitted - self.submitted_at, first - admitted, now - first)
