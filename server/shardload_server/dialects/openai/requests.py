"""The request bodies of OpenAI's protocol, with the extensions that local servers and their clients share.

Unknown fields are ignored: clients send what the vendor adds before any local server knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shardload.chat.messages import parse_messages
from shardload.errors import RequestError
from shardload.quantities import parse_duration
from shardload.requests import SEEDS, ChatRequest, CompletionRequest, EmbeddingRequest, Options, Prompt

Prompts = str | list[str | int | list[int]]
"""Text, tokens, or a list of either."""
INPUTS_LIMIT = 2048
"""Texts of one request for embeddings, as with the vendor: their answer is made in one piece."""


MESSAGES_LIMIT = 2**16
TOOLS_LIMIT = 2**10
BIASES_LIMIT = 2**18
"""As many as the largest vocabularies have tokens."""


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool | None = None


class GenerationBody(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=BIASES_LIMIT)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    keep_alive: str | float | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(GenerationBody, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Meta(max_length=MESSAGES_LIMIT)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=TOOLS_LIMIT)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def request(self) -> ChatRequest:
        """The request that the service takes; raises RequestError naming the field."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return ChatRequest(
            model=self.model,
            messages=parse_messages(self.messages),
            tools=self._offered_tools(),
            response_format=self.response_format,
            n=1 if self.n is None else self.n,
            options=_options(self, max_tokens, top_logprobs),
            template_variables=self.chat_template_kwargs or {},
        )

    def _offered_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model may call; raises RequestError where it must, which nothing makes it."""
        tools = tuple(self.tools or ())
        match self.tool_choice:
            case None | "auto":
                return tools
            case "none":
                return ()
            case "required":
                wanted = "required"
            case {"type": "function", "function": {"name": str() as wanted}}:
                if wanted not in map(_function_name, tools):
                    raise RequestError(f"tool_choice: no tool is named {wanted[:64]!r}", param="tool_choice")
            case _:
                raise RequestError(
                    "tool_choice must be none, auto, required, or an object that names a function",
                    param="tool_choice",
                )
        raise RequestError(
            f"tool_choice {wanted[:64]!r} is not supported: the model itself chooses whether it calls a tool",
            param="tool_choice",
        )


class CompletionBody(GenerationBody, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: Prompts
    logprobs: int | bool | None = None
    echo: bool | None = None
    suffix: str | None = None

    def request(self) -> CompletionRequest:
        """The request that the service takes; raises RequestError naming the field."""
        if self.suffix:
            raise RequestError("suffix is not supported", param="suffix")
        top_logprobs = int(self.logprobs or 0) if self.wants_logprobs else None
        if self.echo and self.wants_logprobs:
            raise RequestError("echo cannot be combined with logprobs", param="echo")
        return CompletionRequest(
            model=self.model,
            prompts=prompts_of(self.prompt, "prompt"),
            n=1 if self.n is None else self.n,
            options=_options(self, self.max_tokens, top_logprobs),
        )

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None and self.logprobs is not False

    def echoes(self) -> tuple[str, ...]:
        """What is put before the text of each choice; raises RequestError for prompts that are tokens."""
        if not self.echo:
            return ()
        prompts = prompts_of(self.prompt, "prompt")
        if any(not isinstance(prompt, str) for prompt in prompts):
            raise RequestError("echo needs prompts that are text", param="echo")
        return tuple(str(prompt) for prompt in prompts for _ in range(self.n or 1))


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None

    def request(self) -> EmbeddingRequest:
        """The request that the service takes; raises RequestError naming the field."""
        inputs = prompts_of(self.input, "input")
        if len(inputs) > INPUTS_LIMIT:
            raise RequestError(
                f"input has {len(inputs)} texts, at most {INPUTS_LIMIT} are taken", param="input"
            )
        return EmbeddingRequest(
            model=self.model,
            inputs=inputs,
            dimensions=self.dimensions,
            keep_alive_seconds=keep_alive_seconds(self.keep_alive),
        )


def prompts_of(prompts: Prompts, param: str) -> tuple[Prompt, ...]:
    """One prompt or many, text or tokens, as a tuple of prompts; raises RequestError for a mixture."""
    if isinstance(prompts, str):
        return (prompts,)
    tokens = [each for each in prompts if isinstance(each, int)]
    if not tokens:
        return tuple(each for each in prompts if not isinstance(each, int))
    if len(tokens) < len(prompts):
        raise RequestError(f"{param} mixes tokens with texts: send lists of tokens, or texts", param=param)
    return (tokens,)


def keep_alive_seconds(value: str | float | None) -> float | None:
    """Seconds of ``keep_alive``; None leaves it to the model; raises RequestError."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise RequestError(f"keep_alive: {error}", param="keep_alive") from error


def _options(body: GenerationBody, max_tokens: int | None, top_logprobs: int | None) -> Options:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Options(
        max_tokens=None if max_tokens == -1 else max_tokens,  # -1: no limit, as local clients say it
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=body.repeat_penalty,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_logit_bias(body.logit_bias),
        seed=_seed(body.seed),
        stop=stop or None,
        ignore_eos=body.ignore_eos,
        grammar=body.grammar,
        top_logprobs=top_logprobs,
        keep_alive_seconds=keep_alive_seconds(body.keep_alive),
    )


def _function_name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None


def _seed(seed: int | None) -> int | None:
    # -1 asks for a seed of the server's choice; any other number is brought into llama.cpp's range.
    return None if seed is None or seed == -1 else seed % SEEDS


def _logit_bias(bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    if bias is None:
        return None
    pairs = []
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise RequestError(f"logit_bias: {token[:40]!r} is not a token id", param="logit_bias")
        pairs.append((int(token), value))
    return tuple(pairs)
