"""The body of an error as OpenAI's clients expect it."""

from __future__ import annotations

from typing import Any

import msgspec

from shardload_server.errors import Failure


def failure_body(failure: Failure) -> dict[str, Any]:
    """The ``{"error": ...}`` object of a failure."""
    error = {
        "message": failure.message,
        "type": failure.type,
        "param": failure.param,
        "code": failure.code,
        **failure.details,
    }
    return {"error": error}


def failure_frame(failure: Failure) -> bytes:
    """The event that ends a stream which had already begun; no ``[DONE]`` follows it."""
    return b"data: " + msgspec.json.encode(failure_body(failure)) + b"\n\n"
