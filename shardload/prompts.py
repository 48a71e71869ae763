"""From what a request says to the tokens that the engine gets. Pure; long texts belong in a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from shardload.chat.messages import Message, with_system, with_system_said_by_user
from shardload.chat.template import ChatTemplate, template_source
from shardload.errors import RequestError, UnencodableText
from shardload.library.entry import ModelEntry
from shardload.requests import ChatRequest, Prompt

MakeTemplate = Callable[[str, str, str], ChatTemplate]
"""Compiles a template from its source and its begin and end pieces, or remembers that it did."""


class Vocabulary(Protocol):
    """What is needed of a model's vocabulary; None and -1 both stand for a token that it has not."""

    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    def tokenize(
        self, text: str, /, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]: ...
    def piece(self, token: int, /, *, special: bool = False) -> bytes: ...


def chat_tokens(
    request: ChatRequest, entry: ModelEntry, vocab: Vocabulary, make_template: MakeTemplate
) -> list[int]:
    """The tokens of a conversation in the model's own form.

    Raises RequestError, and ModelUnavailable for a model whose template is broken.
    """
    if any(message.has_images for message in request.messages):
        raise RequestError(f"the model {entry.name!r} does not take images", param="messages")
    begin, end = _piece(vocab, vocab.bos), _piece(vocab, vocab.eos)
    source = template_source(entry.chat_template, knows_chatml=_knows_chatml(entry, vocab))
    template = make_template(source, begin, end)
    if request.tools and not template.takes_tools:
        raise RequestError(
            f"the model {entry.name!r} does not take tools: its chat template has no place for them",
            param="tools",
        )
    text = _rendered(template, with_system(request.messages, entry.system), request)
    # Most templates print the begin token themselves, and a model that gets two of them answers worse.
    starts = bool(begin) and text.startswith(begin)
    tokens = vocab.tokenize(text, add_special=not starts, parse_special=True)
    return _not_empty(tokens, vocab, "messages")


def _rendered(template: ChatTemplate, messages: Sequence[Message], request: ChatRequest) -> str:
    try:
        return template.render(messages, request.tools, request.template_variables)
    except RequestError:
        # Some families have no system role, and their templates refuse it.
        turned = with_system_said_by_user(messages)
        if turned != tuple(messages):
            with suppress(RequestError):
                return template.render(turned, request.tools, request.template_variables)
        raise


def completion_tokens(prompt: Prompt, vocab: Vocabulary) -> list[int]:
    """The tokens of a prompt, which may come as tokens already; raises RequestError."""
    if isinstance(prompt, str):
        return _not_empty(vocab.tokenize(prompt, add_special=True, parse_special=True), vocab, "prompt")
    if not prompt:
        raise RequestError("prompt is empty: give it at least one token", param="prompt")
    return list(prompt)


def embedding_tokens(text: Prompt, vocab: Vocabulary) -> list[int]:
    """The tokens of a text to be embedded; raises RequestError where there are none."""
    tokens = (
        vocab.tokenize(text, add_special=True, parse_special=False) if isinstance(text, str) else list(text)
    )
    if not tokens:
        raise RequestError("input is empty: give it text", param="input")
    return tokens


def _not_empty(tokens: list[int], vocab: Vocabulary, param: str) -> list[int]:
    if tokens:
        return tokens
    if vocab.bos is None or vocab.bos < 0:
        raise RequestError(f"{param} is empty: the model needs some text to go on from", param=param)
    return [vocab.bos]


def _piece(vocab: Vocabulary, token: int | None) -> str:
    if token is None or token < 0:
        return ""
    return vocab.piece(token, special=True).decode("utf-8", "replace")


def _knows_chatml(entry: ModelEntry, vocab: Vocabulary) -> bool:
    if entry.chat_template:
        return False
    try:
        return len(vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)) == 1
    except UnencodableText:
        return False
