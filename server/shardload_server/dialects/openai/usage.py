"""Token counts and timings as clients read them."""

from __future__ import annotations

from typing import Any

from shardload.engine.request import Finish, Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object of a generation."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def timings_body(finish: Finish) -> dict[str, Any]:
    """The ``timings`` object of llama.cpp's server, which many local clients show."""
    usage, timings = finish.usage, finish.timings
    processed_tokens = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        **_pace("prompt", processed_tokens, timings.prompt_seconds),
        **_pace("predicted", usage.completion_tokens, timings.decode_seconds),
        "queued_ms": round(timings.queued_seconds * 1000, 3),
    }


def _pace(name: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(seconds * 1000, 3),
        f"{name}_per_token_ms": round(seconds * 1000 / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds > 0 else 0.0,
    }
