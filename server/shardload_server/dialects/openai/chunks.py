"""The events of a streamed answer, byte for byte; what repeats in every chunk is built once per answer."""

from __future__ import annotations

from typing import Any

import msgspec

from shardload.answer import Answer, AnswerDelta
from shardload.chat.messages import ToolCall
from shardload.engine.request import Finish, Usage
from shardload_server.dialects.openai.logprobs import ChatLogprobs, CompletionLogprobs
from shardload_server.dialects.openai.usage import timings_body, usage_body

FINGERPRINT = "shardload"
DONE_FRAME = b"data: [DONE]\n\n"

encode = msgspec.json.encode


class ChatChunks:
    """Chunks of ``chat.completion.chunk``; the first of each choice is preceded by its role."""

    object = "chat.completion.chunk"

    def __init__(self, answer: Answer, *, include_usage: bool) -> None:
        self._opening = _opening(self.object, answer)
        self._usage = b',"usage":null' if include_usage else b""
        self._include_usage = include_usage
        self._heads: dict[int, bytes] = {}
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._usage + b"}\n\n"
        self._logprobs = ChatLogprobs()
        self._calls: dict[int, int] = {}

    def frames(self, delta: AnswerDelta) -> bytes:
        """The events of one delta; none at all when it holds nothing to tell."""
        head = self._heads.get(delta.index)
        if head is not None and delta.text and not (delta.logprobs or delta.finish or delta.tool_calls):
            return head + encode(delta.text) + self._tail
        first = head is None
        if head is None:
            head = self._opening + b'%d,"delta":{"content":' % delta.index
            self._heads[delta.index] = head
        parts = [self._role(delta.index)] if first else []
        if delta.logprobs:
            parts += [head, encode(delta.text), b'},"logprobs":', encode(self._logprobs.body(delta.logprobs))]
            parts += [b',"finish_reason":null}]', self._usage, b"}\n\n"]
        elif delta.text:
            parts += [head, encode(delta.text), self._tail]
        parts += [self._call(delta.index, call) for call in delta.tool_calls]
        if delta.finish is not None:
            parts.append(self._last(delta.index, delta.finish, delta.finish_reason or delta.finish.reason))
        return b"".join(parts)

    def closing(self, usage: Usage) -> bytes:
        """The end of the stream, after the last choice has finished."""
        if not self._include_usage:
            return DONE_FRAME
        return _usage_frame(self._opening, usage) + DONE_FRAME

    def _role(self, index: int) -> bytes:
        delta = b'%d,"delta":{"role":"assistant","content":""' % index
        return self._opening + delta + self._tail

    def _call(self, index: int, call: ToolCall) -> bytes:
        number = self._calls[index] = self._calls.get(index, -1) + 1
        body = encode([{"index": number, **call_body(call)}])
        return self._opening + b'%d,"delta":{"tool_calls":%b' % (index, body) + self._tail

    def _last(self, index: int, finish: Finish, reason: str) -> bytes:
        choice = b'%d,"delta":{},"logprobs":null,"finish_reason":"%b"}]' % (index, reason.encode())
        return self._opening + choice + _ending(self._usage, finish)


class CompletionChunks:
    """Chunks of ``text_completion``; ``echoes`` are put before the text of each choice."""

    object = "text_completion"

    def __init__(self, answer: Answer, *, include_usage: bool, echoes: tuple[str, ...] = ()) -> None:
        self._opening = _opening(self.object, answer)
        self._usage = b',"usage":null' if include_usage else b""
        self._include_usage = include_usage
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._usage + b"}\n\n"
        self._heads: dict[int, bytes] = {}
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._echoes = echoes

    def frames(self, delta: AnswerDelta) -> bytes:
        """The events of one delta; none at all when it holds nothing to tell."""
        head = self._heads.get(delta.index)
        if head is not None and delta.text and not delta.logprobs and delta.finish is None:
            return head + encode(delta.text) + self._tail
        parts = []
        if head is None:
            head = self._opening + b'%d,"text":' % delta.index
            self._heads[delta.index] = head
            if echo := self._echo(delta.index):
                parts += [head, encode(echo), self._tail]
        if delta.logprobs:
            parts += [head, encode(delta.text), b',"logprobs":', self._encoded_logprobs(delta)]
            parts += [b',"finish_reason":null}]', self._usage, b"}\n\n"]
        elif delta.text:
            parts += [head, encode(delta.text), self._tail]
        if delta.finish is not None:
            parts += [head, b'"","logprobs":null,"finish_reason":"', delta.finish.reason.encode(), b'"}]']
            parts.append(_ending(self._usage, delta.finish))
        return b"".join(parts)

    def closing(self, usage: Usage) -> bytes:
        """The end of the stream, after the last choice has finished."""
        if not self._include_usage:
            return DONE_FRAME
        return _usage_frame(self._opening, usage) + DONE_FRAME

    def _echo(self, index: int) -> str:
        return self._echoes[index] if index < len(self._echoes) else ""

    def _encoded_logprobs(self, delta: AnswerDelta) -> bytes:
        logprobs = self._logprobs.get(delta.index)
        if logprobs is None:
            logprobs = self._logprobs[delta.index] = CompletionLogprobs(len(self._echo(delta.index)))
        return encode(logprobs.body(delta.logprobs))


def call_body(call: ToolCall) -> dict[str, Any]:
    """A tool call as clients read it."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _opening(kind: str, answer: Answer) -> bytes:
    fields: dict[str, Any] = {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
    }
    return b"data: " + encode(fields)[:-1] + b',"choices":[{"index":'


def _ending(usage: bytes, finish: Finish) -> bytes:
    return usage + b',"timings":' + encode(timings_body(finish)) + b"}\n\n"


def _usage_frame(opening: bytes, usage: Usage) -> bytes:
    fields = opening.removesuffix(b'[{"index":')
    return fields + b'[],"usage":' + encode(usage_body(usage)) + b"}\n\n"
