"""From the bytes of a request body to a typed value, or to an error that names the field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from shardload.errors import RequestError

T = TypeVar("T")

_WHERE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def parse_body(body: bytes, kind: type[T]) -> T:
    """Decode JSON into ``kind``; raises RequestError, with the field in ``param`` where one is wrong."""
    if not body:
        raise RequestError("the request has no body")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from error
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise RequestError(f"the request body is not JSON: {reason}") from error
    except RecursionError as error:
        raise RequestError("the request body is nested too deeply") from error


def _validation_error(message: str) -> RequestError:
    where = _WHERE.search(message)
    path = where["path"] if where else ""
    reason = message[: where.start()] if where else message
    if missing := _MISSING.match(reason):
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return RequestError(f"{param} is missing", param=param)
    reason = reason[:1].lower() + reason[1:]
    return RequestError(f"{path}: {reason}" if path else f"the request body: {reason}", param=path or None)
