"""Answering by a model, whatever the protocol: as events while it generates, or whole."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shardload.answer import Answer, AnswerDelta
from shardload.engine.request import Usage
from shardload.errors import ShardloadError
from shardload.service import Embeddings, Plan
from shardload_server.dialects.openai.failures import failure_frame
from shardload_server.errors import failure_of
from shardload_server.exchange import ClientLeft, Exchange
from shardload_server.outcome import CLIENT_LEFT, Outcome, outcome_of
from shardload_server.responses import header_text, json_response
from shardload_server.stack import FAREWELL_SECONDS, Stack
from shardload_server.streaming import EventStream

GRACE_SECONDS = 0.3
"""How long a streaming request waits before it reports an open: what fails sooner fails with a status."""
SILENCE_SECONDS = 15.0
MODEL_HEADER, RULE_HEADER = "x-shardload-model", "x-shardload-rule"

logger = logging.getLogger("shardload.server")


class Chunks(Protocol):
    """The events of one streamed answer."""

    def frames(self, delta: AnswerDelta) -> bytes: ...

    def closing(self, usage: Usage) -> bytes: ...


class Phrasing(Protocol):
    """How a protocol says an answer."""

    def chunks(self, answer: Answer) -> Chunks: ...

    def whole(self, answer: Answer, deltas: list[AnswerDelta]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """The response to a request for text; an ASGI application of its own.

    A client that leaves, in whatever phase, ends it at once and gives back what it holds.
    """

    stack: Stack
    plan: Plan
    phrasing: Phrasing
    stream: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = outcome_of(scope)
        with self.stack.in_flight.admit() as exchange:
            try:
                if self.stream:
                    await self._answer_in_events(exchange, outcome, receive, send)
                else:
                    response = await self._whole_answer(exchange, outcome, receive)
                    await response(scope, receive, send)
            except ClientLeft:
                outcome.status = CLIENT_LEFT

    async def _whole_answer(self, exchange: Exchange, outcome: Outcome, receive: Receive) -> Response:
        async def work() -> Response:
            deltas: list[AnswerDelta] = []
            async with self._started(outcome) as answer:
                async for delta in answer:
                    if not deltas:
                        self.stack.metrics.observe_first_token(answer.model, outcome.seconds)
                        answer.be_patient()
                    deltas.append(delta)
            return json_response(self.phrasing.whole(answer, deltas), headers=answer_headers(answer))

        return await exchange.run(receive, work)

    async def _answer_in_events(
        self, exchange: Exchange, outcome: Outcome, receive: Receive, send: Send
    ) -> None:
        stream = EventStream(
            send,
            headers=self._planned_headers(),
            grace_seconds=GRACE_SECONDS,
            silence_seconds=SILENCE_SECONDS,
            progress_comments=self.stack.config.server.progress_comments,
        )
        try:
            await exchange.run(receive, lambda: self._send_events(stream, outcome))
        except ClientLeft:
            raise
        except Exception as error:
            if not stream.started:
                raise
            failure = failure_of(error)
            outcome.status = failure.status
            if not isinstance(error, ShardloadError):
                logger.exception("an answer failed after it had begun")
            with anyio.move_on_after(FAREWELL_SECONDS):
                await stream.end(failure_frame(failure))
        finally:
            stream.stop_heartbeat()

    def _planned_headers(self) -> Mapping[str, str]:
        """What an answer's headers will be, when they may have to go out while a model still opens.

        Of several models nobody knows yet which one answers.
        """
        planned = _headers(self.plan.model, self.plan.rule)
        return {RULE_HEADER: planned[RULE_HEADER]} if len(self.plan.decision.candidates) > 1 else planned

    async def _send_events(self, stream: EventStream, outcome: Outcome) -> None:
        stream.start_heartbeat()
        async with self._started(outcome, stream) as answer:
            chunks = self.phrasing.chunks(answer)
            first = True
            async for delta in answer:
                if first:
                    self.stack.metrics.observe_first_token(answer.model, outcome.seconds)
                    first = False
                if frames := chunks.frames(delta):
                    await stream.write(frames)
            await stream.end(chunks.closing(answer.usage))

    @asynccontextmanager
    async def _started(self, outcome: Outcome, stream: EventStream | None = None) -> AsyncIterator[Answer]:
        answer = await self.stack.service.start(self.plan, progress=stream.report if stream else None)
        outcome.model = answer.model
        try:
            if stream:
                stream.settled(answer_headers(answer))
            yield answer
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()
            usage = answer.usage
            self.stack.metrics.count_tokens(
                answer.model,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
            )


def answer_headers(answer: Answer | Embeddings) -> Mapping[str, str]:
    """Who answered, and by which rule it was chosen."""
    return _headers(answer.model, answer.rule)


def _headers(model: str, rule: str) -> Mapping[str, str]:
    return {MODEL_HEADER: header_text(model), RULE_HEADER: header_text(rule)}
