"""From what a request says to the tokens that the engine gets. Pure; long texts belong in a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shardload.chat.messages import with_system
from shardload.chat.template import ChatTemplate, template_source
from shardload.errors import RequestError, UnencodableText
from shardload.library.entry import ModelEntry
from shardload.requests import ChatRequest, Prompt

MakeTemplate = Callable[[str, str, str], ChatTemplate]
"""Compiles a template from its source and its begin and end pieces, or remembers that it did."""


class Vocabulary(Protocol):
    """What is needed of a model's vocabulary; -1 stands for a token that it has not."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    def tokenize(
        self, text: str, /, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]: ...
    def piece(self, token: int, /, *, special: bool = False) -> bytes: ...


def chat_tokens(
    request: ChatRequest, entry: ModelEntry, vocab: Vocabulary, make_template: MakeTemplate
) -> list[int]:
    """The tokens of a conversation in the model's own form; raises RequestError."""
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
    text = template.render(
        with_system(request.messages, entry.system), request.tools, **request.template_variables
    )
    # Most templates print the begin token themselves, and a model that gets two of them answers worse.
    starts = bool(begin) and text.startswith(begin)
    tokens = vocab.tokenize(text, add_special=not starts, parse_special=True)
    return _not_empty(tokens, vocab, "messages")


def completion_tokens(prompt: Prompt, vocab: Vocabulary, *, param: str = "prompt") -> list[int]:
    """The tokens of a prompt, which may come as tokens already; raises RequestError."""
    if isinstance(prompt, str):
        return _not_empty(vocab.tokenize(prompt, add_special=True, parse_special=True), vocab, param)
    return _checked(prompt, vocab, param)


def embedding_tokens(text: Prompt, vocab: Vocabulary, *, param: str = "input") -> list[int]:
    """The tokens of a text to be embedded; raises RequestError where there are none."""
    if not isinstance(text, str):
        return _checked(text, vocab, param)
    tokens = vocab.tokenize(text, add_special=True, parse_special=False)
    if not tokens:
        raise RequestError(f"{param} is empty: give it text", param=param)
    return tokens


def _checked(tokens: Sequence[int], vocab: Vocabulary, param: str) -> list[int]:
    if not tokens:
        raise RequestError(f"{param} is empty: give it at least one token", param=param)
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocab.n_tokens:
            raise RequestError(
                f"{param}: token {token} is not in the vocabulary of {vocab.n_tokens}", param=param
            )
    return list(tokens)


def _not_empty(tokens: list[int], vocab: Vocabulary, param: str) -> list[int]:
    if tokens:
        return tokens
    if vocab.bos < 0:
        raise RequestError(f"{param} is empty: the model needs some text to go on from", param=param)
    return [vocab.bos]


def _piece(vocab: Vocabulary, token: int) -> str:
    return vocab.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def _knows_chatml(entry: ModelEntry, vocab: Vocabulary) -> bool:
    if entry.chat_template:
        return False
    try:
        return len(vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)) == 1
    except UnencodableText:
        return False
