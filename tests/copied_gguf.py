"""Copies of model files: with more in the header, with tensors left out, in parts.

``from copied_gguf import copy_model, split_model`` works in every test file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import gguf
from tiny_gguf import finish


def copy_model(
    source: Path,
    path: Path,
    add: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    without: Collection[str] = (),
) -> Path:
    """Write a model again, with what ``add`` adds to its header and ``without`` some tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(path), "llama")
    _copy_header(reader, writer)
    add(writer)
    _write(writer, (tensor for tensor in reader.tensors if tensor.name not in without))
    return path


def split_model(source: Path, parts: list[Path]) -> list[Path]:
    """Write a model again in parts, which have its tensors in turn."""
    reader = gguf.GGUFReader(source)
    for number, path in enumerate(parts):
        writer = gguf.GGUFWriter(str(path), "llama")
        if number == 0:
            _copy_header(reader, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(parts))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        _write(writer, reader.tensors[number :: len(parts)])
    return parts


def _copy_header(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def _write(writer: gguf.GGUFWriter, tensors: Iterable[Any]) -> None:
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
