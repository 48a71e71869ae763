"""Tool calls in what a model says: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

The form is that of Hermes and Qwen, which most templates with a place for tools teach their models.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from shardload.chat.messages import ToolCall

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class ToolCallScanner:
    """Takes one choice's text as it comes and parts it into content and calls.

    What may become a tag is held back, and so is white space, which goes with the calls around it. A call
    that is no valid one stays content, tags and all. The result does not depend on how the text is cut.
    """

    __slots__ = ("_call", "_content", "found_calls")

    def __init__(self) -> None:
        self._content = ""
        self._call: str | None = None
        self.found_calls = False

    def feed(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The content and the calls that are certain after this text."""
        sent: list[str] = []
        calls: list[ToolCall] = []
        while text or self._call is not None:
            if self._call is None:
                self._content += text
                text = self._take_content(sent)
                if self._call is None:
                    break
            else:
                self._call += text
                call, closing, text = self._call.partition(CLOSING)
                if not closing:
                    break
                self._close_call(call, closing, sent, calls)
        return "".join(sent), tuple(calls)

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back, at the end; a call that lacks its closing tag only is one."""
        sent: list[str] = []
        calls: list[ToolCall] = []
        if self._call is not None:
            self._close_call(self._call, "", sent, calls)
        held, self._content = self._content, ""
        if not (self.found_calls and not held.strip()):
            sent.append(held)
        return "".join(sent), tuple(calls)

    def _take_content(self, sent: list[str]) -> str:
        """Send content up to the next call, and return what follows its opening tag."""
        content, opening, rest = self._content.partition(OPENING)
        kept = len(content.rstrip())
        if not opening:
            for length in range(min(len(OPENING) - 1, len(content)), 0, -1):
                if content.endswith(OPENING[:length]):
                    kept = len(content[:-length].rstrip())
                    break
        sent.append(content[:kept])
        self._content = content[kept:]
        if opening:
            self._call = ""
        return rest

    def _close_call(self, call: str, closing: str, sent: list[str], calls: list[ToolCall]) -> None:
        self._call = None
        parsed = parse_call(call)
        if parsed is None:
            sent.append(self._content + OPENING + call + closing)
        else:
            calls.append(parsed)
            self.found_calls = True
        self._content = ""


def parse_call(text: str) -> ToolCall | None:
    """The call that is written between two tags; None if it is none."""
    try:
        call: Any = msgspec.json.decode(text.strip())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(f"call_{secrets.token_hex(12)}", call["name"], arguments)
