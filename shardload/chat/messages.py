"""What is said in a conversation, whatever protocol it came in by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shardload.errors import RequestError

SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of text in a message of several parts."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message, by URL (which may be a ``data:`` one)."""

    url: str


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made; ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``content`` is text, or parts where the client sent parts."""

    role: str
    content: str | tuple[Part, ...] = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of all parts, one line break between two."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def has_images(self) -> bool:
        return not isinstance(self.content, str) and any(isinstance(part, ImagePart) for part in self.content)

    def for_template(self) -> dict[str, Any]:
        """The mapping that chat templates expect: text content, arguments of tool calls as objects."""
        role = "system" if self.role in SYSTEM_ROLES else self.role
        shaped: dict[str, Any] = {"role": role, "content": self.text}
        if self.name is not None:
            shaped["name"] = self.name
        if self.tool_calls:
            shaped["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            shaped["tool_call_id"] = self.tool_call_id
        return shaped


def parse_messages(value: Any, *, param: str = "messages") -> tuple[Message, ...]:
    """Read mappings like ``{"role": "user", "content": "Hi"}``; raises RequestError naming the field."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise RequestError(f"{param} must be a list of messages", param=param)
    if not value:
        raise RequestError(f"{param} must have at least one message", param=param)
    return tuple(
        item if isinstance(item, Message) else _parse_message(item, f"{param}[{index}]")
        for index, item in enumerate(value)
    )


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The conversation with ``system`` put first, unless it has a system message of its own."""
    if not system or any(message.role in SYSTEM_ROLES for message in messages):
        return tuple(messages)
    return (Message("system", system), *messages)


def with_system_said_by_user(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with a leading system text put before the user's first words."""
    if len(messages) < 2 or messages[0].role not in SYSTEM_ROLES or messages[1].role != "user":
        return tuple(messages)
    system, first, *rest = messages
    return (replace(first, content=f"{system.text}\n\n{first.text}"), *rest)


def _call_for_template(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parse_message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} must be an object with role and content", param=where)
    role = value.get("role")
    if role not in ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}", param=f"{where}.role"
        )
    # What an assistant refused with has a field of its own in answers, which comes back as it was.
    said = "refusal" if value.get("content") is None and role == "assistant" else "content"
    return Message(
        role=role,
        content=_parse_content(value.get(said), f"{where}.{said}"),
        name=_optional_text(value.get("name"), f"{where}.name"),
        tool_calls=_parse_calls(value.get("tool_calls"), f"{where}.tool_calls"),
        tool_call_id=_optional_text(value.get("tool_call_id"), f"{where}.tool_call_id"),
    )


def _parse_content(value: Any, where: str) -> str | tuple[Part, ...]:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    return tuple(_parse_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _parse_part(value: Any, where: str) -> Part:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind in ("text", "input_text") and isinstance(value.get("text"), str):
        return TextPart(value["text"])
    if kind == "refusal" and isinstance(value.get("refusal"), str):
        return TextPart(value["refusal"])
    if kind == "image_url":
        image = value.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if isinstance(url, str):
            return ImagePart(url)
    raise RequestError(f"{where} must be a part of type text, refusal or image_url, complete", param=where)


def _parse_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RequestError(f"{where} must be a list", param=where)
    return tuple(_parse_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _parse_call(value: Any, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function must have a name and arguments", param=where)
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(str(value.get("id") or ""), function["name"], arguments)


def _optional_text(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise RequestError(f"{where} must be a string", param=where)
