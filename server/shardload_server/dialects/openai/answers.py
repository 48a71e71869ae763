"""Whole answers: what a request without ``stream`` gets."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shardload.answer import Answer, AnswerDelta
from shardload.chat.messages import ToolCall
from shardload.engine.request import Finish, TokenLogprob
from shardload_server.dialects.openai.chunks import FINGERPRINT, call_body
from shardload_server.dialects.openai.logprobs import ChatLogprobs, CompletionLogprobs
from shardload_server.dialects.openai.usage import timings_body, usage_body


@dataclass(slots=True)
class Choice:
    """One choice while its deltas come in."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish: Finish | None = None
    finish_reason: str | None = None

    def add(self, delta: AnswerDelta) -> None:
        """Take in the next delta."""
        self.texts.append(delta.text)
        self.logprobs += delta.logprobs
        self.tool_calls += delta.tool_calls
        self.finish = delta.finish or self.finish
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def text(self) -> str:
        return "".join(self.texts)


def choices_of(deltas: Iterable[AnswerDelta]) -> dict[int, Choice]:
    """The choices that deltas belong to, by index."""
    choices: dict[int, Choice] = {}
    for delta in deltas:
        choices.setdefault(delta.index, Choice()).add(delta)
    return choices


def chat_body(
    answer: Answer,
    choices: Mapping[int, Choice],
    *,
    logprobs: bool,
) -> dict[str, Any]:
    """A ``chat.completion``."""
    shaped = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": ChatLogprobs().body(choice.logprobs) if logprobs else None,
            "finish_reason": choice.finish_reason,
        }
        for index, choice in sorted(choices.items())
    ]
    return _body("chat.completion", answer, shaped, choices)


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [call_body(call) for call in choice.tool_calls]
    return message


def completion_body(
    answer: Answer,
    choices: Mapping[int, Choice],
    *,
    logprobs: bool,
    echoes: Sequence[str] = (),
) -> dict[str, Any]:
    """A ``text_completion``."""
    shaped = []
    for index, choice in sorted(choices.items()):
        echo = echoes[index] if index < len(echoes) else ""
        shaped.append(
            {
                "index": index,
                "text": echo + choice.text,
                "logprobs": CompletionLogprobs(len(echo)).body(choice.logprobs) if logprobs else None,
                "finish_reason": choice.finish.reason if choice.finish else None,
            }
        )
    return _body("text_completion", answer, shaped, choices)


def embeddings_body(
    vectors: Sequence[np.ndarray], prompt_tokens: int, *, model: str, encoding: Literal["float", "base64"]
) -> dict[str, Any]:
    """A list of embeddings; base64 is that of little-endian float32."""
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(vector, encoding)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }


def _vector(vector: np.ndarray, encoding: Literal["float", "base64"]) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
    return vector.tolist()


def _body(
    kind: str, answer: Answer, shaped: Sequence[Mapping[str, Any]], choices: Mapping[int, Choice]
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
        "choices": shaped,
        "usage": usage_body(answer.usage),
    }
    finishes = [choice.finish for choice in choices.values() if choice.finish]
    if len(finishes) == 1:
        body["timings"] = timings_body(finishes[0])
    return body
