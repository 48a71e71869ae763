from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.chat.messages import (
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    parse_messages,
    with_system,
    with_system_said_by_user,
)
from shardload.errors import RequestError


def test_plain_messages() -> None:
    assert parse_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]) == (
        Message("user", "Hi"),
        Message("assistant", ""),
    )


def test_parts() -> None:
    (message,) = parse_messages(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "text", "text": "this?"},
                ],
            }
        ]
    )
    assert message.content == (
        TextPart("What is"),
        ImagePart("data:image/png;base64,AA=="),
        TextPart("this?"),
    )
    assert message.text == "What is\nthis?"
    assert message.has_images
    assert not Message("user", (TextPart("no"),)).has_images


def test_tool_calls_reach_templates_as_objects() -> None:
    (message,) = parse_messages(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
                    {"id": "b", "type": "function", "function": {"name": "log", "arguments": "not json"}},
                ],
            }
        ]
    )
    assert message.tool_calls == (ToolCall("a", "add", '{"x": 1}'), ToolCall("b", "log", "not json"))
    calls = message.for_template()["tool_calls"]
    assert calls[0] == {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    assert calls[1]["function"]["arguments"] == "not json"


def test_templates_know_no_developers() -> None:
    assert Message("developer", "Be brief.").for_template() == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [{"type": "refusal", "refusal": "I may not."}]},
        {"content": None, "refusal": "I may not."},
        {"refusal": "I may not."},
        {"content": "I may not.", "refusal": None},
    ],
)
def test_what_the_assistant_refused_with_is_what_it_said(fields: dict[str, Any]) -> None:
    (message,) = parse_messages([{"role": "assistant", **fields}])
    assert message.text == "I may not."


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "messages"),
        ([{"role": "assistant", "content": [{"type": "refusal", "text": "a"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "refusal": 3}], "messages[0].refusal"),
        ("Hi", "messages"),
        ({"role": "user"}, "messages"),
        ([], "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([{"role": "user", "content": "a"}, {"role": "king", "content": "b"}], "messages[1].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "name": 3}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], "messages[0].tool_calls[0]"),
    ],
)
def test_bad_messages_name_the_field(value: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_messages(value)
    assert caught.value.param == param
    assert param in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_anything_is_parsed_or_refused(value: Any) -> None:
    with contextlib.suppress(RequestError):
        assert all(isinstance(message.text, str) for message in parse_messages(value))


def test_a_system_text_is_put_first_only_where_there_is_none() -> None:
    asked = (Message("user", "Hi"),)
    assert with_system(asked, "Be kind.") == (Message("system", "Be kind."), *asked)
    assert with_system(asked, None) == asked
    own = (Message("developer", "Be brief."), *asked)
    assert with_system(own, "Be kind.") == own


def test_a_system_text_may_be_said_by_the_user() -> None:
    system, asked = Message("system", "Be kind."), Message("user", (TextPart("Hi"),), name="Ann")
    assert with_system_said_by_user((system, asked)) == (Message("user", "Be kind.\n\nHi", name="Ann"),)
    for others in ((asked,), (system,), (system, Message("assistant", "Hi")), ()):
        assert with_system_said_by_user(others) == others
