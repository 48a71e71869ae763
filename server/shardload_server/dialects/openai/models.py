"""Models as OpenAI's clients list them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shardload.library.entry import ModelEntry

OWNER = "shardload"


def model_body(entry: ModelEntry) -> dict[str, Any]:
    """One model; ``meta`` is llama.cpp's extension."""
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": OWNER,
        "aliases": entry.aliases,
        "capabilities": sorted(entry.capabilities),
        "meta": {
            "n_ctx": entry.ctx_tokens,
            "n_ctx_train": entry.context_length,
            "n_params": entry.parameter_count,
            "size": entry.size_bytes,
        },
    }


def model_list(entries: Iterable[ModelEntry]) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model_body(entry) for entry in entries]}
