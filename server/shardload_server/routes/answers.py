"""Requests that models answer: chat completions, completions, embeddings."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from shardload.errors import ModelNotFound, OpenFailed
from shardload.requests import Request as ModelRequest
from shardload.service import Plan
from shardload_server.auth import presented_key
from shardload_server.dialects.openai.phrasing import ChatPhrasing, CompletionPhrasing
from shardload_server.dialects.openai.requests import ChatBody, CompletionBody, EmbeddingBody
from shardload_server.embedding import Embedding
from shardload_server.generation import Generation
from shardload_server.parsing import parse_body
from shardload_server.stack import Stack


async def chat_completions(request: Request) -> ASGIApp:
    """``POST /v1/chat/completions``."""
    body = parse_body(await request.body(), ChatBody)
    phrasing = ChatPhrasing(include_usage=body.include_usage, logprobs=bool(body.logprobs))
    return Generation(_stack(request), await _plan(request, body.request()), phrasing, bool(body.stream))


async def completions(request: Request) -> ASGIApp:
    """``POST /v1/completions``."""
    body = parse_body(await request.body(), CompletionBody)
    phrasing = CompletionPhrasing(
        include_usage=body.include_usage, logprobs=body.wants_logprobs, echoes=body.echoes()
    )
    return Generation(_stack(request), await _plan(request, body.request()), phrasing, bool(body.stream))


async def embeddings(request: Request) -> ASGIApp:
    """``POST /v1/embeddings``."""
    body = parse_body(await request.body(), EmbeddingBody)
    return Embedding(_stack(request), await _plan(request, body.request()), body.encoding_format or "float")


async def _plan(request: Request, asked: ModelRequest) -> Plan:
    stack, headers, key = _stack(request), dict(request.headers), presented_key(request.scope)
    try:
        return stack.service.plan(asked, headers=headers, key=key)
    except (ModelNotFound, OpenFailed):
        await stack.manager.look_again()
        return stack.service.plan(asked, headers=headers, key=key)


def _stack(request: Request) -> Stack:
    stack: Stack = request.app.state.stack
    return stack


ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
)
