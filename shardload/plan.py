"""A request that has been checked and has somewhere to go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shardload.chat.grammar import response_schema
from shardload.requests import ChatRequest, EmbeddingRequest, Prompt, Request
from shardload.routing import Decision, Endpoint, RequestFeatures
from shardload.routing.features import estimate_tokens

# What chat templates put around a message, more or less.
MESSAGE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """A valid request and the models that may answer it, best first; nothing is open or held for it."""

    request: Request
    features: RequestFeatures
    decision: Decision

    @property
    def model(self) -> str:
        """The name of the first candidate."""
        return self.decision.candidates[0].entry.name

    @property
    def rule(self) -> str:
        return self.decision.rule


def features_of(
    request: Request, headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), key: str | None = None
) -> RequestFeatures:
    """What the router sees of a request; raises RequestError for a response format that there is not."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lowered = {name.lower(): value for name, value in pairs}
    if isinstance(request, EmbeddingRequest):
        tokens = max(map(_prompt_tokens, request.inputs), default=0)
        return RequestFeatures("embedding", request.model, tokens, tokens, headers=lowered, key=key)
    endpoint: Endpoint = "chat" if isinstance(request, ChatRequest) else "completion"
    tools = json_schema = images = False
    if isinstance(request, ChatRequest):
        tokens = sum(estimate_tokens(message.text) + MESSAGE_TOKENS for message in request.messages)
        tokens += estimate_tokens(request.tools_text)
        tools, images = bool(request.tools), any(message.has_images for message in request.messages)
        json_schema = response_schema(request.response_format) is not None
    else:
        tokens = max(map(_prompt_tokens, request.prompts), default=0)
    return RequestFeatures(
        endpoint=endpoint,
        model=request.model,
        prompt_tokens=tokens,
        context_tokens=tokens + (request.options.max_tokens or 0),
        tools=tools,
        json_schema=json_schema,
        images=images,
        headers=lowered,
        key=key,
    )


def _prompt_tokens(prompt: Prompt) -> int:
    return estimate_tokens(prompt) if isinstance(prompt, str) else len(prompt)
