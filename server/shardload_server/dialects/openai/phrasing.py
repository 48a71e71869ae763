"""How OpenAI's protocol says an answer: which chunks, which whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardload.answer import Answer, AnswerDelta
from shardload_server.dialects.openai.answers import chat_body, choices_of, completion_body
from shardload_server.dialects.openai.chunks import ChatChunks, CompletionChunks


@dataclass(frozen=True, slots=True)
class ChatPhrasing:
    """Chat completions."""

    include_usage: bool
    logprobs: bool

    def chunks(self, answer: Answer) -> ChatChunks:
        """The events of the answer."""
        return ChatChunks(answer, include_usage=self.include_usage)

    def whole(self, answer: Answer, deltas: list[AnswerDelta]) -> dict[str, Any]:
        """The body of the finished answer."""
        return chat_body(answer, choices_of(deltas), logprobs=self.logprobs)


@dataclass(frozen=True, slots=True)
class CompletionPhrasing:
    """Text completions."""

    include_usage: bool
    logprobs: bool
    echoes: tuple[str, ...] = ()

    def chunks(self, answer: Answer) -> CompletionChunks:
        """The events of the answer."""
        return CompletionChunks(answer, include_usage=self.include_usage, echoes=self.echoes)

    def whole(self, answer: Answer, deltas: list[AnswerDelta]) -> dict[str, Any]:
        """The body of the finished answer."""
        return completion_body(answer, choices_of(deltas), logprobs=self.logprobs, echoes=self.echoes)
