"""Answering with vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.types import Receive, Scope, Send

from shardload.service import Embeddings, Plan
from shardload_server.dialects.openai.answers import embeddings_body
from shardload_server.exchange import ClientLeft
from shardload_server.generation import answer_headers
from shardload_server.outcome import CLIENT_LEFT, outcome_of
from shardload_server.responses import json_response
from shardload_server.stack import Stack


@dataclass(frozen=True, slots=True)
class Embedding:
    """The response to a request for embeddings; an ASGI application of its own."""

    stack: Stack
    plan: Plan
    encoding: Literal["float", "base64"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = outcome_of(scope)

        async def work() -> Embeddings:
            return await self.stack.service.embed(self.plan)

        with self.stack.in_flight.admit() as exchange:
            try:
                found = await exchange.run(receive, work)
            except ClientLeft:
                outcome.status = CLIENT_LEFT
                return
            outcome.model = found.model
            self.stack.metrics.count_tokens(found.model, prompt_tokens=found.prompt_tokens)
            body = embeddings_body(
                found.vectors, found.prompt_tokens, model=found.model, encoding=self.encoding
            )
            await json_response(body, headers=answer_headers(found))(scope, receive, send)
