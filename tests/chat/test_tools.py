from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.chat.tools import ToolCallScanner, parse_call

CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'


def scan(pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    scanner = ToolCallScanner()
    content, calls = "", []
    for result in (*map(scanner.feed, pieces), scanner.finish()):
        content += result[0]
        calls += [(call.name, call.arguments) for call in result[1]]
    return content, calls


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello there. ", "Hello there. ", 0),
        (CALL, "", 1),
        (f"{CALL}\n{CALL}\n", "", 2),
        (f"Let me see.\n\n{CALL}", "Let me see.", 1),
        (f"{CALL} Done.", " Done.", 1),
        (CALL.removesuffix("</tool_call>"), "", 1),
        ("1 < 2 <tool", "1 < 2 <tool", 0),
        ("<tool_call>no json</tool_call> x", "<tool_call>no json</tool_call> x", 0),
        ('a <tool_call>{"name": 3}</tool_call>', 'a <tool_call>{"name": 3}</tool_call>', 0),
        ("a <tool_call>[1", "a <tool_call>[1", 0),
        ("<<tool_call>x", "<<tool_call>x", 0),
        ("", "", 0),
    ],
)
def test_texts_whole_and_in_characters(text: str, content: str, calls: int) -> None:
    expected = (content, [("add", '{"x":1}')] * calls)
    assert scan([text]) == expected
    assert scan(text) == expected


PIECES = st.lists(
    st.sampled_from(
        ["<", "tool_call>", "</tool_call>", "<tool_call>", '{"name":"f"}', " ", "\n", "x", "<tool", "_call>"]
    ),
    max_size=12,
)


@given(PIECES)
def test_the_cuts_do_not_matter(pieces: list[str]) -> None:
    assert scan(pieces) == scan(["".join(pieces)])


@given(PIECES)
def test_without_calls_nothing_is_lost(pieces: list[str]) -> None:
    content, calls = scan(pieces)
    if not calls:
        assert content == "".join(pieces)


def test_content_is_sent_as_soon_as_it_is_certain() -> None:
    scanner = ToolCallScanner()
    assert scanner.feed("Hello <tool") == ("Hello", ())
    assert scanner.feed("box") == (" <toolbox", ())
    content, calls = scanner.feed(f" {CALL}")
    assert (content, len(calls)) == ("", 1)
    assert scanner.found_calls


def test_calls_in_other_spellings() -> None:
    call = parse_call('{"name": "f", "parameters": {"a": "b"}}')
    assert call is not None
    assert (call.name, call.arguments) == ("f", '{"a":"b"}')
    call = parse_call('{"name": "f", "arguments": "{}"}')
    assert call is not None
    assert call.arguments == "{}"
    assert call.id.startswith("call_")
    assert parse_call('{"name": "f"}') != parse_call('{"name": "f"}')
    assert parse_call("\ud800") is None
