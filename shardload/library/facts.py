"""What the catalog keeps of a model's file, read once from its header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardload.errors import GGUFError, NotGGUF, UnsupportedGGUF
from shardload.gguf import GGUFFile
from shardload.library.entry import FileKey, Kind
from shardload.library.estimate import ENCODERS, MemoryShape, memory_shape

POOLING_NONE = 0
POOLING_RANK = 4


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One servable file, or all parts of one, without what a configuration adds."""

    path: Path
    paths: tuple[Path, ...]
    file_key: FileKey
    architecture: str
    parameter_count: int
    size_bytes: int
    context_length: int
    chat_template: str | None
    kind: Kind
    embeds: bool
    created: int
    memory: MemoryShape


def file_key(paths: Sequence[Path]) -> FileKey:
    """Tell one state of a file from another and from other files; raises OSError."""
    states = [os.stat(path) for path in paths]
    return tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def read_facts(path: Path) -> FileFacts:
    """Read a header; raises a GGUFError for a file that is not a model which can be served."""
    try:
        with GGUFFile(path) as gguf:
            return _facts(gguf)
    except GGUFError:  # also where it is an OSError of the file's own: it says what is wrong
        raise
    except OSError as error:
        raise NotGGUF(path, error.strerror or str(error)) from error


def _facts(gguf: GGUFFile) -> FileFacts:
    path, architecture = gguf.paths[0], gguf.architecture
    role = gguf.metadata.get("general.type", "model")
    if role != "model":
        raise UnsupportedGGUF(path, f"holds {role!r}, which is no model to serve by itself")
    if architecture is None:
        raise UnsupportedGGUF(path, "does not say its architecture")
    if architecture == "clip":
        raise UnsupportedGGUF(path, "is the part of a model that looks at images, and no model by itself")
    if not gguf.tensors:
        raise UnsupportedGGUF(path, "has no tensors: it is a vocabulary only")
    pooling = gguf.metadata.get(f"{architecture}.pooling_type")
    if not isinstance(pooling, int):
        pooling = None
    embeds = architecture in ENCODERS or pooling not in (None, POOLING_NONE)
    key = file_key(gguf.paths)
    return FileFacts(
        path=path,
        paths=gguf.paths,
        file_key=key,
        architecture=architecture,
        parameter_count=gguf.parameter_count,
        size_bytes=gguf.size_bytes,
        context_length=gguf.context_length or 0,
        chat_template=gguf.chat_template(),
        kind="embed" if embeds else "generate",
        embeds=embeds and pooling != POOLING_RANK,
        created=max(mtime for *_, mtime in key) // 1_000_000_000,
        memory=memory_shape(gguf),
    )
