"""A model as requests name it: a file, and how to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shardload.config import KvType
from shardload.library.estimate import MemoryShape

Kind = Literal["generate", "embed"]
Use = Literal["generate", "embed", "seeded"]
"""What a context is for. Seeded texts repeat only where nobody shares the cells: they have their own."""
FileKey = tuple[tuple[int, int, int, int], ...]
"""(device, inode, size, time of modification in ns) of each part of a model's file."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One name of the catalog with all that is known of it without opening it; virtual names are resolved."""

    name: str
    path: Path
    paths: tuple[Path, ...]
    """Every part of a split file in order; for most models, ``path`` alone."""
    aliases: tuple[str, ...]
    base: str | None
    """The name that a virtual model was made on; None for a model with a file of its own."""
    ctx_tokens: int
    slots: int
    parameters: Mapping[str, Any]
    """Defaults under a request's own, by the names of ``SamplingParams`` and ``[models.NAME.parameters]``."""
    system: str | None
    chat_template: str | None
    """The template to use: the configured one, else the file's; None when there is none."""
    pin: bool
    preload: bool
    keep_alive_seconds: float | None
    """Below 0: for ever. None leaves it to the manager's default."""
    kind: Kind
    """What the file is made for; a model of kind "generate" can still be leased for embeddings."""
    capabilities: frozenset[str]
    """Of "completion", "chat", "tools" and "embedding"."""
    architecture: str
    parameter_count: int
    size_bytes: int
    context_length: int
    """The context that the model was trained for."""
    file_key: FileKey
    created: int
    """Time of modification of the file, in seconds of the epoch."""
    memory: MemoryShape = field(default_factory=MemoryShape)
    kv_type: KvType = "f16"
    """In which numbers a context keeps its keys and values."""


def slots_for(entry: ModelEntry, use: Use) -> int:
    """How many sequences a context of a model holds."""
    return 1 if use == "seeded" else entry.slots
