"""What ``shardload inspect`` says of a file, as values; drawing them is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from shardload.gguf import GGUFFile, MetadataArray, TensorInfo, block_name
from shardload.shards.shard import Shard, shards_of

BAR_CELLS = 32
PREVIEW_ELEMENTS = 5

Pages = npt.NDArray[np.bool_]


class Located(Protocol):
    """Bytes of a file, or of a part of a split one: a tensor, for example."""

    @property
    def part(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes that are less than a tensor."""

    part: int
    offset: int
    nbytes: int


class Block(msgspec.Struct, frozen=True):
    """The tensors of one transformer block, or what stands outside of all; ``cells`` are shares of 1."""

    name: str
    tensors: int
    bytes: int
    resident_bytes: int | None
    cells: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """What the store knows of a tensor's bytes."""

    files: tuple[str, ...]
    """The names of other files that have the same."""
    packed_bytes: int = 0
    last_used: float | None = None
    """Of the packed ones, seconds since 1970."""


class ShardLine(msgspec.Struct, frozen=True):
    """What comes and goes as one; ``types`` has the bytes of each tensor type, ``cells`` shares of 1.

    What is shared, packed, and when that was last used (seconds since 1970), is as far as the store knows.
    """

    name: str
    types: dict[str, int]
    bytes: int
    resident_bytes: int | None
    cells: tuple[float, ...] = ()
    shared_with: tuple[str, ...] = ()
    packed_bytes: int = 0
    last_used: float | None = None


class TensorLine(msgspec.Struct, frozen=True):
    """One tensor as listed; ``offset`` counts from the start of its file."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    offset: int
    file: str
    resident_bytes: int | None


class Vocabulary(msgspec.Struct, frozen=True):
    """The kind of tokenizer and its size."""

    kind: str | None
    pre: str | None
    tokens: int | None


class KeyValues(msgspec.Struct, frozen=True):
    """Bytes of the KV cache for a token, and for a context of one sequence; 0 for a model without one."""

    bytes_per_token: int
    ctx_tokens: int
    bytes: int


class Inspection(msgspec.Struct, frozen=True):
    """Everything that is said of one model."""

    name: str
    files: tuple[str, ...]
    size_bytes: int
    header_bytes: int
    version: int
    architecture: str | None
    parameter_count: int
    file_type: str | None
    quantization: dict[str, int]
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    vocabulary: Vocabulary
    chat_template: bool
    key_values: KeyValues
    resident_bytes: int | None
    blocks: tuple[Block, ...]
    shards: tuple[ShardLine, ...] | None = None
    tensors: tuple[TensorLine, ...] | None = None
    metadata: dict[str, Any] | None = None


class Residency:
    """Which bytes of which file are in memory, from one look at each file's pages; None: not to be known."""

    def __init__(self, pages: Sequence[Pages | None], page_bytes: int) -> None:
        self._page_bytes = page_bytes
        # Running counts turn the bytes of any range into two look-ups.
        self._counts = [
            None if part is None else np.concatenate(([0], np.cumsum(part, dtype=np.int64))) for part in pages
        ]

    @property
    def known(self) -> bool:
        """Whether every file's pages could be looked at."""
        return all(counts is not None for counts in self._counts)

    def resident_bytes(self, part: int, offset: int, length: int) -> int:
        """Bytes in memory of ``length`` bytes from ``offset`` of file ``part``."""
        return self._before(part, offset + length) - self._before(part, offset)

    def _before(self, part: int, offset: int) -> int:
        counts = self._counts[part]
        assert counts is not None
        page, rest = divmod(offset, self._page_bytes)
        page = min(page, len(counts) - 1)
        inside = rest if page + 1 < len(counts) and counts[page + 1] > counts[page] else 0
        return int(counts[page]) * self._page_bytes + inside


def inspect_file(
    gguf: GGUFFile,
    residency: Residency,
    key_values: KeyValues,
    *,
    shards: bool = False,
    tensors: bool = False,
    metadata: bool = False,
    kept: Mapping[str, KeptTensor] | None = None,
) -> Inspection:
    """Gather what is asked for of an open file; ``kept`` has what the store knows of its tensors."""
    known = residency.known
    blocks = tuple(_blocks(gguf.tensors.values(), residency))
    return Inspection(
        name=gguf.name,
        files=tuple(str(path) for path in gguf.paths),
        size_bytes=gguf.size_bytes,
        header_bytes=sum(gguf.header_bytes),
        version=gguf.version,
        architecture=gguf.architecture,
        parameter_count=gguf.parameter_count,
        file_type=gguf.file_type,
        quantization=gguf.quantization,
        context_length=gguf.context_length,
        embedding_length=gguf.embedding_length,
        block_count=gguf.block_count,
        vocabulary=Vocabulary(
            kind=_text(gguf.metadata, "tokenizer.ggml.model"),
            pre=_text(gguf.metadata, "tokenizer.ggml.pre"),
            tokens=gguf.vocabulary_size,
        ),
        chat_template=gguf.chat_template() is not None,
        key_values=key_values,
        resident_bytes=sum(block.resident_bytes or 0 for block in blocks) if known else None,
        blocks=blocks,
        shards=tuple(_shards(gguf.tensors, residency, kept or {})) if shards else None,
        tensors=tuple(_tensor_lines(gguf, residency)) if tensors else None,
        metadata={key: _preview(value) for key, value in gguf.metadata.items()} if metadata else None,
    )


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _preview(value: object) -> object:
    if isinstance(value, MetadataArray):
        return {
            "type": value.element_type.name.lower(),
            "count": len(value),
            "first": [_preview(element) for element in value[:PREVIEW_ELEMENTS]],
        }
    return value


def _blocks(tensors: Iterable[TensorInfo], residency: Residency) -> Iterable[Block]:
    groups: dict[str, list[TensorInfo]] = {}
    for tensor in sorted(tensors, key=lambda tensor: (tensor.part, tensor.offset)):
        groups.setdefault(block_name(tensor.name), []).append(tensor)
    for name, members in groups.items():
        nbytes = sum(tensor.nbytes for tensor in members)
        yield Block(name, len(members), nbytes, *_resident_and_cells(members, residency))


def _shards(
    tensors: Mapping[str, TensorInfo], residency: Residency, kept: Mapping[str, KeptTensor]
) -> Iterable[ShardLine]:
    for shard in shards_of(tensors.values()):
        types: dict[str, int] = {}
        extents = []
        for piece in shard.pieces:
            tensor = tensors[piece.tensor]
            types[tensor.type.name] = types.get(tensor.type.name, 0) + piece.nbytes
            extents.append(Extent(tensor.part, tensor.offset + piece.offset, piece.nbytes))
        types = dict(sorted(types.items(), key=lambda entry: -entry[1]))
        resident, cells = _resident_and_cells(extents, residency)
        line = ShardLine(shard.name, types, shard.nbytes, resident, cells)
        yield _with_kept(line, shard, tensors, kept) if kept else line


def _with_kept(
    line: ShardLine, shard: Shard, tensors: Mapping[str, TensorInfo], kept: Mapping[str, KeptTensor]
) -> ShardLine:
    known = [(piece, kept[piece.tensor]) for piece in shard.pieces if piece.tensor in kept]
    return msgspec.structs.replace(
        line,
        shared_with=tuple(
            sorted(
                {
                    name
                    for piece, tensor in known
                    if matters(piece.nbytes, line.bytes)
                    for name in tensor.files
                }
            )
        ),
        # Of a tensor of experts each slice has its part.
        packed_bytes=sum(
            tensor.packed_bytes * piece.nbytes // tensors[piece.tensor].nbytes for piece, tensor in known
        ),
        last_used=max(
            (tensor.last_used for _, tensor in known if tensor.last_used is not None), default=None
        ),
    )


def matters(nbytes: int, of_bytes: int) -> bool:
    """Whether a part is worth a word: norms of a few bytes are not."""
    return 100 * nbytes >= of_bytes


def _resident_and_cells(
    extents: Sequence[Located], residency: Residency
) -> tuple[int | None, tuple[float, ...]]:
    if not residency.known:
        return None, ()
    resident = sum(residency.resident_bytes(each.part, each.offset, each.nbytes) for each in extents)
    return resident, bar_cells(extents, residency)


def bar_cells(tensors: Sequence[Located], residency: Residency, count: int = BAR_CELLS) -> tuple[float, ...]:
    """The bytes of some tensors, one after the other in equal cells: what share of each is in memory."""
    total = sum(tensor.nbytes for tensor in tensors)
    count = max(1, min(count, total))
    borders = [total * cell // count for cell in range(count + 1)]
    resident = [0] * count
    start = 0
    for tensor in tensors:
        for cell in range(count):
            low = max(borders[cell], start)
            high = min(borders[cell + 1], start + tensor.nbytes)
            if low < high:
                resident[cell] += residency.resident_bytes(
                    tensor.part, tensor.offset + low - start, high - low
                )
        start += tensor.nbytes
    return tuple(resident[cell] / (borders[cell + 1] - borders[cell]) for cell in range(count))


def _resident(tensor: TensorInfo, residency: Residency) -> int | None:
    if not residency.known:
        return None
    return residency.resident_bytes(tensor.part, tensor.offset, tensor.nbytes)


def _tensor_lines(gguf: GGUFFile, residency: Residency) -> Iterable[TensorLine]:
    for tensor in gguf.tensors.values():
        yield TensorLine(
            name=tensor.name,
            type=tensor.type.name,
            shape=tensor.shape,
            bytes=tensor.nbytes,
            offset=tensor.offset,
            file=gguf.paths[tensor.part].name,
            resident_bytes=_resident(tensor, residency),
        )
