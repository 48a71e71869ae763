"""Models as llama.cpp's router lists them; its clients look at ``status.value`` and ``source``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardload.library.entry import ModelEntry

if TYPE_CHECKING:
    from shardload.library.manager import ModelStatus

_VALUES: Mapping[str, str] = {
    "open": "loaded",
    "streaming": "loaded",
    "parked": "loaded",
    "opening": "loading",
    "closed": "unloaded",
    "failed": "unloaded",
}


def router_model(entry: ModelEntry, status: ModelStatus) -> dict[str, Any]:
    """One model with its state."""
    state: dict[str, Any] = {"value": _VALUES.get(status.state, "unloaded"), "args": []}
    if status.state == "failed":
        state["failed"] = True
    return {
        "id": entry.name,
        "object": "model",
        "owned_by": "shardload",
        "created": entry.created,
        "aliases": entry.aliases,
        "tags": [],
        "status": state,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "source": "models_dir",
        "path": str(entry.path),
        "can_remove": False,
    }
