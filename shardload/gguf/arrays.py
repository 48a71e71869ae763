"""Metadata arrays that stay in the file until somebody asks for their elements."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from shardload.errors import CorruptGGUF
from shardload.gguf.constants import SCALAR_FORMATS, ValueType
from shardload.gguf.mapping import FileMapping
from shardload.gguf.reader import Cursor

LENGTH = struct.Struct("<Q")
CHUNK_BYTES = 1 << 15
MIN_WALKED_STRINGS, MAX_WALKED_STRINGS = 64, 1 << 15

Positions = np.ndarray[Any, np.dtype[np.int64]]
Fields = np.ndarray[Any, np.dtype[np.uint64]]


class MetadataArray(Sequence[Any]):
    """An array of a model's metadata: its length is known, its elements are decoded when asked for.

    Elements are bool, int, float, str (bytes that are not UTF-8 become U+FFFD) or further arrays. Reading
    an element after its file was closed raises HandleClosed. Threads may read at the same time.
    """

    __slots__ = ("_children", "_count", "_length_bytes", "_offset", "_source", "_starts", "element_type")

    def __init__(
        self,
        source: FileMapping,
        element_type: ValueType,
        count: int,
        offset: int,
        length_bytes: int,
        children: Sequence[MetadataArray] = (),
    ) -> None:
        self.element_type = element_type
        self._source, self._count, self._offset, self._length_bytes = source, count, offset, length_bytes
        self._children = tuple(children)
        self._starts: Positions | None = None

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<MetadataArray of {self._count} {self.element_type.name.lower()}>"

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if self.element_type is ValueType.ARRAY:
            return list(self._children[index]) if isinstance(index, slice) else self._children[index]
        if self.element_type is not ValueType.STRING:
            values = self._numbers()[index]
            return values.tolist() if isinstance(index, slice) else values.item()
        if isinstance(index, slice):
            return [self._string(at) for at in range(self._count)[index]]
        return self._string(range(self._count)[index])

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._children) if self.element_type is ValueType.ARRAY else self.tolist())

    def tolist(self) -> list[Any]:
        """All elements as Python values; arrays within become lists."""
        if self.element_type is ValueType.ARRAY:
            return [child.tolist() for child in self._children]
        if self.element_type is not ValueType.STRING:
            return list(self._numbers().tolist())
        data = bytes(self._view())
        starts = self._index(data).tolist()
        ends = [*starts, len(data)][1:]
        return [
            data[start + 8 : end].decode("utf-8", "replace") for start, end in zip(starts, ends, strict=True)
        ]

    def raw(self) -> memoryview:
        """The elements as they stand in the file, strings with their lengths; raises HandleClosed."""
        return self._view()

    def _view(self) -> memoryview:
        return self._source.view(self._offset, self._length_bytes)

    def _numbers(self) -> np.ndarray[Any, np.dtype[Any]]:
        if self.element_type is ValueType.BOOL:
            return np.not_equal(np.frombuffer(self._view(), np.uint8), 0)
        return np.frombuffer(self._view(), np.dtype(SCALAR_FORMATS[self.element_type]))

    def _string(self, index: int) -> str:
        starts = self._starts if self._starts is not None else self._index(bytes(self._view()))
        end = int(starts[index + 1]) if index + 1 < self._count else self._length_bytes
        return bytes(self._view()[int(starts[index]) + 8 : end]).decode("utf-8", "replace")

    def _index(self, data: bytes) -> Positions:
        if self._starts is None:
            starts, end = scan_strings(data, 0, self._count)
            if len(starts) != self._count or end != self._length_bytes:
                raise CorruptGGUF(self._source.path, "the file was changed in place after it was opened")
            self._starts = starts
        return self._starts


def skip_strings(cursor: Cursor, count: int, what: str) -> None:
    """Pass over ``count`` strings, checking the length of each, without decoding any."""
    while count:
        cursor.require(8 * count, what)
        window, offset = cursor.window(8 * count)
        starts, end = scan_strings(window, offset, count)
        cursor.skip(end - offset, what)
        count -= len(starts)


def scan_strings(window: bytes, offset: int, limit: int) -> tuple[Positions, int]:
    """Where up to ``limit`` strings start whose length fields are in ``window``, and where the last one ends.

    The end may lie outside the window: only the caller knows what the file holds.
    """
    if len(window) < LENGTH.size:
        return np.zeros(0, np.int64), offset
    # The eight bytes at every position, as if a length stood there.
    fields = np.ndarray((len(window) - LENGTH.size + 1,), np.dtype("<u8"), window, strides=(1,))
    pieces: list[Positions] = []
    walked = MIN_WALKED_STRINGS
    while limit and offset < len(fields):
        starts, offset, regular = _guess_strings(fields, offset, limit)
        pieces.append(starts)
        limit -= len(starts)
        if not regular:
            # The fewer strings a wrong guess gave, the more are walked before the next: a guess looks at a
            # whole chunk, and a file could be made to let every one of them fail.
            walked = MIN_WALKED_STRINGS if len(starts) > walked else min(2 * walked, MAX_WALKED_STRINGS)
            starts, offset = _walk_strings(window, offset, min(walked, limit))
            pieces.append(starts)
            limit -= len(starts)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64), offset


def _guess_strings(fields: Fields, offset: int, limit: int) -> tuple[Positions, int, bool]:
    # Nearly all tokens have 1 to 255 bytes, and text has no zeros: then only a length field is a small number
    # when read as one. Where each such field leads to the next, the guess is proved, without a loop.
    near = fields[offset : offset + CHUNK_BYTES]
    starts = np.flatnonzero(near < 256)
    if starts.size == 0 or starts[0] != 0:
        return starts[:0], offset, False
    ends = starts + LENGTH.size + near[starts].astype(np.int64)
    breaks = np.flatnonzero(ends[:-1] != starts[1:])
    count = min(limit, int(breaks[0]) + 1 if breaks.size else starts.size)
    return starts[:count] + offset, offset + int(ends[count - 1]), count == limit or not breaks.size


def _walk_strings(window: bytes, offset: int, limit: int) -> tuple[Positions, int]:
    starts: list[int] = []
    last = len(window) - LENGTH.size
    unpack = LENGTH.unpack_from
    while len(starts) < limit and offset <= last:
        starts.append(offset)
        offset += LENGTH.size + unpack(window, offset)[0]
    return np.array(starts, np.int64), offset
