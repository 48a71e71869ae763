"""Requests that models answer: chat completions, completions, embeddings."""

from __future__ import annotations

from typing import TypeVar

import anyio.to_thread
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from shardload.errors import ModelNotFound, OpenFailed
from shardload.plan import Plan
from shardload.requests import Request as ModelRequest
from shardload_server.auth import presented_key
from shardload_server.dialects.openai.phrasing import ChatPhrasing, CompletionPhrasing
from shardload_server.dialects.openai.requests import ChatBody, CompletionBody, EmbeddingBody
from shardload_server.embedding import Embedding
from shardload_server.generation import Generation
from shardload_server.parsing import parse_body
from shardload_server.stack import Stack

Body = TypeVar("Body", ChatBody, CompletionBody, EmbeddingBody)

LARGE_BODY_BYTES = 2**18
"""From here on a body is read on a worker thread: the event loop has others to serve."""


async def chat_completions(request: Request) -> ASGIApp:
    """``POST /v1/chat/completions``."""
    body, plan = await _planned(request, ChatBody)
    phrasing = ChatPhrasing(include_usage=body.include_usage, logprobs=bool(body.logprobs))
    return Generation(_stack(request), plan, phrasing, bool(body.stream))


async def completions(request: Request) -> ASGIApp:
    """``POST /v1/completions``."""
    body, plan = await _planned(request, CompletionBody)
    phrasing = CompletionPhrasing(
        include_usage=body.include_usage, logprobs=body.wants_logprobs, echoes=body.echoes()
    )
    return Generation(_stack(request), plan, phrasing, bool(body.stream))


async def embeddings(request: Request) -> ASGIApp:
    """``POST /v1/embeddings``."""
    body, plan = await _planned(request, EmbeddingBody)
    return Embedding(_stack(request), plan, body.encoding_format or "float")


async def _planned(request: Request, kind: type[Body]) -> tuple[Body, Plan]:
    """A request's body, and who may answer it; a large one is read beside the event loop."""
    stack, raw = _stack(request), await request.body()
    headers, key = dict(request.headers), presented_key(request.scope)

    def read() -> tuple[Body, ModelRequest]:
        body = parse_body(raw, kind)
        return body, body.request()

    large = len(raw) > LARGE_BODY_BYTES
    body, asked = await anyio.to_thread.run_sync(read) if large else read()
    try:
        return body, stack.service.plan(asked, headers=headers, key=key)
    except (ModelNotFound, OpenFailed):
        await stack.manager.look_again()
        return body, stack.service.plan(asked, headers=headers, key=key)


def _stack(request: Request) -> Stack:
    stack: Stack = request.app.state.stack
    return stack


ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
)
