"""Tool calls on the wire, streamed and whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from shardload.answer import AnswerDelta
from shardload.chat.messages import ToolCall
from shardload.engine.request import Finish, Timings, Usage
from shardload.errors import RequestError
from shardload_server.dialects.openai.answers import chat_body, choices_of
from shardload_server.dialects.openai.chunks import ChatChunks
from shardload_server.dialects.openai.requests import ChatBody
from shardload_server.parsing import parse_body

FINISH = Finish("stop", None, Usage(3, 0, 9), Timings(0.0, 0.1, 0.2))
ANSWER: Any = SimpleNamespace(id="chatcmpl-1", created=1, model="ada", usage=FINISH.usage)
DELTAS = (
    AnswerDelta(0, "Well."),
    AnswerDelta(0, "", tool_calls=(ToolCall("call_a", "add", '{"x":1}'),)),
    AnswerDelta(0, "", tool_calls=(ToolCall("call_b", "log", "{}"),), finish=FINISH, called=True),
)


def shaped(name: str, number: int | None, arguments: str, id_: str) -> dict[str, Any]:
    call = {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
    return call if number is None else {"index": number, **call}


def test_streamed() -> None:
    chunks = ChatChunks(ANSWER, include_usage=False)
    events = b"".join(chunks.frames(delta) for delta in DELTAS).decode().strip().split("\n\n")
    choices = [msgspec.json.decode(event.removeprefix("data: "))["choices"][0] for event in events]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert calls == [shaped("add", 0, '{"x":1}', "call_a"), shaped("log", 1, "{}", "call_b")]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Well."
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]


def test_whole() -> None:
    (choice,) = chat_body(ANSWER, choices_of(DELTAS), logprobs=False)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    assert choice["message"]["tool_calls"] == [
        shaped("add", None, '{"x":1}', "call_a"),
        shaped("log", None, "{}", "call_b"),
    ]


def test_calls_alone_leave_no_content() -> None:
    (choice,) = chat_body(ANSWER, choices_of(DELTAS[1:]), logprobs=False)["choices"]
    assert choice["message"]["content"] is None


ADD = {"type": "function", "function": {"name": "add"}}


def asked(**fields: Any) -> ChatBody:
    body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return parse_body(msgspec.json.encode(body), ChatBody)


@pytest.mark.parametrize(("choice", "count"), [(None, 1), ("auto", 1), ("none", 0)])
def test_tools_are_offered_unless_none_are_wanted(choice: str | None, count: int) -> None:
    assert len(asked(tools=[ADD], tool_choice=choice).request().tools) == count


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("required", "not supported"),
        (ADD, "not supported"),
        ({"type": "function", "function": {"name": "log"}}, "no tool is named 'log'"),
        ("always", "must be none, auto"),
        ({"type": "function"}, "must be none, auto"),
    ],
)
def test_nothing_makes_a_model_call_a_tool(choice: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        asked(tools=[ADD, {}, {"function": 3}], tool_choice=choice).request()
    assert caught.value.param == "tool_choice"
