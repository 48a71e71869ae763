"""An answer for programs without an event loop: read piece by piece, or whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from shardload.answer import Answer, AnswerDelta, FinishReason
from shardload.chat.messages import ToolCall
from shardload.engine.request import Finish, TokenLogprob, Usage
from shardload.runtime import Runtime


class Generation:
    """Text that a model generates. Iterating yields it in pieces as they come, `text` waits for all of it.

    Each ``for`` begins at the first piece. What ``next`` takes is yielded no more: ``for`` goes on behind it.
    A generation that is not read to its end is stopped by ``close``, or by leaving its ``with`` block; when
    nobody has it any more it is stopped with a ResourceWarning. One thread at a time.
    """

    def __init__(self, runtime: Runtime, answer: Answer) -> None:
        self.model, self.rule = answer.model, answer.rule
        """The model that answers, and the rule of the routes that chose it."""
        self._runtime, self._answer = runtime, answer
        self._pieces: list[str] = []
        self._taken = 0
        self._logprobs: list[TokenLogprob] = []
        self._tool_calls: list[ToolCall] = []
        self._finish: Finish | None = None
        self._finish_reason: FinishReason | None = None
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        position = self._taken
        while True:
            while position < len(self._pieces):
                yield self._pieces[position]
                position += 1
            if not self._advance():
                return

    def __next__(self) -> str:
        for piece in self:
            self._taken += 1
            return piece
        raise StopIteration

    @property
    def text(self) -> str:
        """The whole text; waits for it."""
        return "".join(self.read()._pieces)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation by {self.model!r}: {''.join(self._pieces)!r}{'' if self._ended else '...'}>"

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended: the model or a stop string did it, or it was long enough; None before that."""
        return self._finish_reason

    @property
    def finish(self) -> Finish | None:
        """How the text ended, with timings; None before that."""
        return self._finish

    @property
    def usage(self) -> Usage:
        """Tokens generated so far, read or not."""
        return self._answer.usage

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens so far, where ``top_logprobs`` asked for them."""
        return tuple(self._logprobs)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model has made so far, where the request had tools."""
        return tuple(self._tool_calls)

    def read(self) -> Self:
        """Wait for the whole text."""
        if not self._ended:
            with self._closed_by_errors():
                self._runtime.rest(self._answer, self._take)
        return self

    def close(self) -> None:
        """Stop generating; what was read stays. Idempotent."""
        if not self._ended:
            self._ended = True
            self._runtime.end(self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            warnings.warn(
                f"{self!r} was neither read to its end nor closed", ResourceWarning, source=self, stacklevel=1
            )
            self._runtime.abandon(self._answer)

    def _advance(self) -> bool:
        """Wait for the next delta; False at the end."""
        if self._ended:
            return False
        with self._closed_by_errors():
            self._take(self._runtime.next(self._answer))
        return True

    @contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _take(self, delta: AnswerDelta) -> None:
        self._logprobs += delta.logprobs
        if delta.text:
            self._pieces.append(delta.text)
        self._tool_calls += delta.tool_calls
        self._finish, self._finish_reason = delta.finish, delta.finish_reason
        self._ended = delta.finish is not None
