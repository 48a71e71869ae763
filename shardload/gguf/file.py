"""A model file that is open: its header is parsed, and nothing else of it is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from shardload.errors import HandleClosed, MissingSplit
from shardload.gguf.arrays import MetadataArray
from shardload.gguf.constants import ValueType, file_type_label
from shardload.gguf.header import Header, Value, parse_header
from shardload.gguf.mapping import FileMapping
from shardload.gguf.reader import Cursor
from shardload.gguf.splits import check_part, merge_tensors, part_paths, split_count
from shardload.gguf.tensor import TensorInfo, dequantized, tensor_view

BLOCK_NAME = re.compile(r"(?:.*?\.)?blk\.\d+(?=\.)")


class GGUFFile:
    """An open model file, or all files of a split one: header parsed, weights mapped and unread.

    Owns the mappings until `close()`; arrays that were handed out keep theirs alive. What the header says
    stays readable after `close()`, except the elements of metadata arrays. Threads may share it. Raises a
    GGUFError for everything that a path or a file can have wrong.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._mappings: tuple[FileMapping, ...] = ()
        self._closed = True
        self.path = Path(fspath(path))
        mapping, header = _open_part(self.path)
        try:
            count = split_count(str(self.path), header)
            self.paths = part_paths(self.path, count) if count > 1 else (self.path,)
            self._mappings, headers = _open_others(self.path, self.paths, mapping, header)
        except BaseException:
            mapping.close()
            raise
        self._closed = False
        self.statuses = tuple(mapping.status for mapping in self._mappings)
        """What `os.stat` said of each file as it was opened."""
        try:
            self.tensors: Mapping[str, TensorInfo] = merge_tensors(self.paths, headers)
        except BaseException:
            self.close()
            raise
        self.version, self.alignment = headers[0].version, headers[0].alignment_bytes
        self.metadata: Mapping[str, Value] = headers[0].metadata
        self.metadata_types: Mapping[str, ValueType] = headers[0].value_types
        self.header_bytes = tuple(header.header_bytes for header in headers)
        self.size_bytes = sum(mapping.size_bytes for mapping in self._mappings)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Open a file; the same as calling the class."""
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {str(self.path)!r}>"

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def close(self) -> None:
        """Give the files back; idempotent."""
        self._closed = True
        for mapping in self._mappings:
            mapping.close()

    def tensor(self, name: str, dequantize: bool = False) -> np.ndarray[Any, np.dtype[Any]]:
        """A read-only array of one tensor; no byte is read before it is looked at.

        F32, F16, F64 and I8 to I64 come as numpy has them, in the tensor's ``shape``. Every other type,
        BF16 among them, comes as uint8 in the shape ``(..., rows, row_bytes)``: a row of ``ne[0]`` elements
        is ``ne[0] / type.block_elements`` blocks of ``type.block_bytes``, one after the other.

        With ``dequantize`` it is float32 in the tensor's ``shape``, a copy unless it is F32 already.
        Raises KeyError for an unknown name, HandleClosed, and UnsupportedGGUF for a type that cannot be
        turned into float32.
        """
        if self._closed:
            raise HandleClosed(repr(self))
        tensor = self.tensors[name]
        view = tensor_view(self._mappings[tensor.part], tensor)
        return dequantized(str(self.paths[tensor.part]), tensor, view) if dequantize else view

    @property
    def architecture(self) -> str | None:
        """What llama.cpp calls the kind of model: ``llama``, ``bert`` ..."""
        return self._text("general.architecture")

    @property
    def name(self) -> str:
        """The model's own name, or else the file's without ``.gguf``."""
        return self._text("general.name") or self.paths[0].name.removesuffix(".gguf")

    @property
    def parameter_count(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def context_length(self) -> int | None:
        """Tokens of context that the model was trained for."""
        return self._number("context_length")

    @property
    def embedding_length(self) -> int | None:
        """Numbers in one embedding."""
        return self._number("embedding_length")

    @property
    def block_count(self) -> int | None:
        """Transformer blocks."""
        return self._number("block_count")

    @property
    def vocabulary_size(self) -> int | None:
        """Tokens in the vocabulary."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, MetadataArray) else self._number("vocab_size")

    def chat_template(self, name: str | None = None) -> str | None:
        """The default chat template, or a named one such as ``tool_use``; None without one."""
        return self._text("tokenizer.chat_template" + (f".{name}" if name else ""))

    @property
    def quantization(self) -> dict[str, int]:
        """Bytes per tensor type, the type with the most first."""
        mix: dict[str, int] = {}
        for tensor in self.tensors.values():
            mix[tensor.type.name] = mix.get(tensor.type.name, 0) + tensor.nbytes
        return dict(sorted(mix.items(), key=lambda entry: -entry[1]))

    @property
    def file_type(self) -> str | None:
        """The label of the mix that the file claims to be, such as ``Q4_K_M``."""
        value = self.metadata.get("general.file_type")
        return file_type_label(value) if isinstance(value, int) else None

    def block_bytes(self) -> dict[str, int]:
        """Bytes of each block (``blk.0`` ...); what is in none goes by the first word of its name."""
        blocks: dict[str, int] = {}
        for tensor in self.tensors.values():
            block = block_name(tensor.name)
            blocks[block] = blocks.get(block, 0) + tensor.nbytes
        return blocks

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _number(self, suffix: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{suffix}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def block_name(tensor_name: str) -> str:
    """The block that a tensor belongs to: ``blk.3``, ``enc.blk.0``, or ``output`` for ``output.weight``."""
    match = BLOCK_NAME.match(tensor_name)
    return match[0] if match else tensor_name.partition(".")[0]


def _open_part(path: Path) -> tuple[FileMapping, Header]:
    mapping = FileMapping(str(path))
    try:
        header = parse_header(Cursor(mapping.stream, str(path), mapping.size_bytes), mapping)
        mapping.finish_header()
    except BaseException:
        mapping.close()
        raise
    return mapping, header


def _open_others(
    path: Path, paths: tuple[Path, ...], mapping: FileMapping, header: Header
) -> tuple[tuple[FileMapping, ...], list[Header]]:
    if len(paths) == 1:
        return (mapping,), [header]
    for part in paths:
        if not part.exists():
            raise MissingSplit(path, part)
    mappings: list[FileMapping] = []
    headers: list[Header] = []
    try:
        for index, part in enumerate(paths):
            opened = (mapping, header) if part.name == path.name else _open_part(part)
            mappings.append(opened[0])
            headers.append(opened[1])
            check_part(part, opened[1], index, len(paths))
    except BaseException:
        for opened_mapping in mappings:
            opened_mapping.close()
        raise
    return tuple(mappings), headers
