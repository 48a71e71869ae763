"""From an exception to what a client is told: one table, looked up by class and never by text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from shardload.errors import (
    AllPinned,
    ConfigError,
    GGUFError,
    InsufficientMemory,
    ModelNotFound,
    ModelUnavailable,
    OpenFailed,
    Overloaded,
    PromptTooLong,
    RequestError,
    ShardloadError,
    ShuttingDown,
    UnencodableText,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as every wire protocol needs it; a dialect only phrases the body."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    type: str
    code: str | None
    details: tuple[str, ...] = ()  # attributes of the exception that the body repeats as fields
    final: bool = False  # a repeated request gets the same answer: clients need not retry


_TABLE: Mapping[type[BaseException], _Row] = {
    RequestError: _Row(400, INVALID_REQUEST, None),
    PromptTooLong: _Row(
        400, INVALID_REQUEST, "context_length_exceeded", details=("prompt_tokens", "context_tokens")
    ),
    UnencodableText: _Row(400, INVALID_REQUEST, "unencodable_text"),
    ConfigError: _Row(400, INVALID_REQUEST, "invalid_configuration"),
    GGUFError: _Row(400, INVALID_REQUEST, "invalid_model_file"),
    ModelNotFound: _Row(404, INVALID_REQUEST, "model_not_found", details=("available",)),
    Overloaded: _Row(429, "rate_limit_error", "rate_limit_exceeded"),
    ModelUnavailable: _Row(503, SERVER_ERROR, "model_unavailable"),
    OpenFailed: _Row(503, SERVER_ERROR, "model_open_failed", final=True),
    InsufficientMemory: _Row(
        503, SERVER_ERROR, "insufficient_memory", details=("needed_bytes", "budget_bytes"), final=True
    ),
    AllPinned: _Row(
        503, SERVER_ERROR, "all_pinned", details=("needed_bytes", "budget_bytes", "pinned"), final=True
    ),
    ShuttingDown: _Row(503, SERVER_ERROR, "shutting_down"),
    ShardloadError: _Row(500, SERVER_ERROR, "internal_error"),
}

_HTTP_CODES: Mapping[int, tuple[str, str]] = {
    401: (INVALID_REQUEST, "invalid_api_key"),
    404: (INVALID_REQUEST, "unknown_path"),
    405: (INVALID_REQUEST, "method_not_allowed"),
    408: (INVALID_REQUEST, "request_timeout"),
    413: (INVALID_REQUEST, "request_too_large"),
}


def failure_of(error: BaseException) -> Failure:
    """What the client is told about an exception; what nobody foresaw is a 500 that gives nothing away."""
    if isinstance(error, HTTPException):
        return _http_failure(error)
    for kind in type(error).__mro__:
        if row := _TABLE.get(kind):
            return _row_failure(error, row)
    return Failure(
        status=500,
        type=SERVER_ERROR,
        code="internal_error",
        message="an error inside the server; its log has the reason",
    )


def _row_failure(error: BaseException, row: _Row) -> Failure:
    headers = {}
    retry_after_seconds: float | None = getattr(error, "retry_after_seconds", None)
    if retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_seconds)))
    if row.final:
        headers["x-should-retry"] = "false"
    return Failure(
        status=row.status,
        type=row.type,
        code=row.code,
        message=str(error),
        param=getattr(error, "param", None),
        details={name: getattr(error, name) for name in row.details},
        headers=headers,
    )


def _http_failure(error: HTTPException) -> Failure:
    default = (INVALID_REQUEST if error.status_code < 500 else SERVER_ERROR, None)
    kind, code = _HTTP_CODES.get(error.status_code, default)
    return Failure(
        status=error.status_code,
        type=kind,
        code=code,
        message=error.detail or HTTPStatus(error.status_code).phrase,
        headers=dict(error.headers or {}),
    )
