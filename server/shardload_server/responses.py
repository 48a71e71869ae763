"""Whole JSON responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from shardload_server.dialects.openai.failures import failure_body
from shardload_server.errors import Failure

_PLAIN_HEADER = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is ``value`` as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def failure_response(failure: Failure) -> Response:
    """A response that carries an error."""
    return json_response(failure_body(failure), failure.status, failure.headers)


def header_text(text: str) -> str:
    """Text fit for a header or a line: names and paths may hold anything, headers printable ASCII alone."""
    return text if _PLAIN_HEADER.fullmatch(text) else quote(text, safe="/ :@+=,()[]{}")
