"""An answer while it comes in: the deltas of all its choices, and the lease that it lives on."""

from __future__ import annotations

import asyncio
import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

import anyio

from shardload.chat.messages import ToolCall
from shardload.chat.tools import ToolCallScanner
from shardload.engine.request import Delta, Finish, Timings, TokenLogprob, Usage
from shardload.errors import RequestError

if TYPE_CHECKING:
    from types import TracebackType

    from shardload.library.lease import Lease

FinishReason = Literal["stop", "length", "tool_calls"]

# Deltas of several choices wait here for the one reader; beyond it they wait in the engine, which takes note.
MERGED_DELTAS = 16
GRAMMAR_PARAMS = ("grammar", "response_format")


class Stream(Protocol):
    """The deltas of one sequence; closing it cancels the sequence."""

    @property
    def completion_tokens(self) -> int: ...
    def be_patient(self) -> None: ...
    async def __anext__(self) -> Delta: ...
    async def aclose(self) -> None: ...


class Source(Protocol):
    """The deltas of all choices with the index of each; asked no more once every choice has finished."""

    @property
    def completion_tokens(self) -> int: ...
    def be_patient(self) -> None: ...
    async def next(self) -> tuple[int, Delta]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """The next piece of choice ``index``; ``finish`` is on its last only."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the model has just made, each whole; only where the request had tools."""
    called: bool = False
    """Whether the choice ends so that its calls are answered."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the choice ended; None before its end."""
        if self.finish is None:
            return None
        return "tool_calls" if self.called else self.finish.reason


class Answer:
    """Deltas of one or more choices in the order in which they come; event loop only.

    Owns its lease and its sequences: they are given back at the end, on an error, and by ``aclose``.
    Errors of the engine come out of the iteration.
    """

    _lease: Lease | None = None

    def __init__(
        self,
        lease: Lease,
        source: Source,
        *,
        kind: Literal["chatcmpl", "cmpl"],
        rule: str,
        prompts_tokens: Sequence[int],
        n: int,
        tools: bool = False,
        grammar_param: str = "grammar",
    ) -> None:
        """Take over the lease and the source; ``n`` choices continue each prompt, with ``tools`` to call.

        ``grammar_param`` is the field of the request that a grammar came by.
        """
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model, self.rule = lease.entry.name, rule
        self.load_seconds = lease.load_seconds
        self.prompt_tokens = sum(prompts_tokens)
        self._n, self._grammar_param = n, grammar_param
        self._cached_tokens = [0] * (len(prompts_tokens) * n)
        self._unfinished = len(prompts_tokens) * n
        self._scanners = [ToolCallScanner() for _ in self._cached_tokens] if tools else None
        self._source = source
        self._lease = lease

    @property
    def closed(self) -> bool:
        """Whether everything was given back: at the end, after an error, or by ``aclose``."""
        return self._lease is None

    @property
    def choices(self) -> int:
        return len(self._cached_tokens)

    @property
    def usage(self) -> Usage:
        """Tokens generated so far, read or not; a prompt counts once, however many choices continue it."""
        cached_tokens = sum(self._cached_tokens[:: self._n])
        return Usage(self.prompt_tokens, cached_tokens, self._source.completion_tokens)

    def be_patient(self) -> None:
        """Say that the reader does nothing with a delta before he has them all: they come many at once then.

        That leaves the processor to the computation.
        """
        self._source.be_patient()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerDelta:
        if self._lease is None:
            raise StopAsyncIteration
        try:
            index, delta = await self._source.next()
        except BaseException as error:
            if isinstance(error, RequestError) and error.param in GRAMMAR_PARAMS:
                error.param = self._grammar_param
            await self.aclose()
            raise
        finish = delta.finish
        if finish is not None:
            self._cached_tokens[index] = finish.usage.cached_tokens
            self._unfinished -= 1
            if not self._unfinished:
                await self.aclose()
        if self._scanners is not None:
            return _scanned(self._scanners[index], index, delta)
        return AnswerDelta(index, delta.text, delta.logprobs, finish)

    async def aclose(self) -> None:
        """Cancel what still generates and give the lease back, also in a cancelled scope; idempotent."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()
        finally:
            lease.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._lease is not None:
            warnings.warn(
                f"unclosed answer {self.id} of {self.model}", ResourceWarning, source=self, stacklevel=1
            )


def _scanned(scanner: ToolCallScanner, index: int, delta: Delta) -> AnswerDelta:
    text, calls = scanner.feed(delta.text)
    if delta.finish is None:
        return AnswerDelta(index, text, delta.logprobs, None, calls)
    rest, last_calls = scanner.finish()
    # Whoever ran out of tokens may have had more to say: the client must know.
    called = scanner.found_calls and delta.finish.reason == "stop"
    return AnswerDelta(index, text + rest, delta.logprobs, delta.finish, (*calls, *last_calls), called)


class Single:
    """The source of an answer of one choice."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def completion_tokens(self) -> int:
        return self._stream.completion_tokens

    def be_patient(self) -> None:
        self._stream.be_patient()

    async def next(self) -> tuple[int, Delta]:
        return 0, await self._stream.__anext__()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Merged:
    """The source of an answer of several choices: each has a task that carries its deltas to the reader."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue(MERGED_DELTAS)
        self._streams = tuple(streams)
        self._tasks = [asyncio.create_task(self._carry(*pair)) for pair in enumerate(streams)]

    @property
    def completion_tokens(self) -> int:
        return sum(stream.completion_tokens for stream in self._streams)

    def be_patient(self) -> None:
        for stream in self._streams:
            stream.be_patient()

    async def next(self) -> tuple[int, Delta]:
        index, delta = await self._queue.get()
        if isinstance(delta, Exception):
            raise delta
        return index, delta

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
        # Whoever waits for the next delta learns that there is none.
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait((0, StopAsyncIteration()))

    async def _carry(self, index: int, stream: Stream) -> None:
        try:
            while True:
                delta = await stream.__anext__()
                await self._queue.put((index, delta))
                if delta.finish is not None:
                    return
        except Exception as error:
            await self._queue.put((index, error))


class Nothing:
    """The source of an answer for which no token was asked: every choice ends at once."""

    def __init__(self, prompts_tokens: Sequence[int], n: int) -> None:
        lengths = [tokens for tokens in prompts_tokens for _ in range(n)]
        self._finishes = [
            (index, Finish("length", None, Usage(tokens, 0, 0), Timings(0.0, 0.0, 0.0)))
            for index, tokens in enumerate(lengths)
        ]
        self._finishes.reverse()

    @property
    def completion_tokens(self) -> int:
        return 0

    def be_patient(self) -> None:
        pass

    async def next(self) -> tuple[int, Delta]:
        index, finish = self._finishes.pop()
        return index, Delta("", (), finish=finish)

    async def aclose(self) -> None:
        self._finishes.clear()
