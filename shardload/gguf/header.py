"""The front of a GGUF file: magic, version, metadata, and where the tensors are."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from shardload.errors import NotGGUF, UnsupportedGGUF
from shardload.gguf.arrays import LENGTH, MetadataArray, skip_strings
from shardload.gguf.constants import (
    DEFAULT_ALIGNMENT_BYTES,
    MAGIC,
    MAX_ARRAY_DEPTH,
    MAX_DIMENSIONS,
    MAX_KEYS,
    MAX_NAME_BYTES,
    MAX_NESTED_ARRAYS,
    MAX_TENSORS,
    SCALAR_FORMATS,
    SUPPORTED_VERSIONS,
    TensorType,
    ValueType,
)
from shardload.gguf.mapping import FileMapping
from shardload.gguf.reader import Cursor
from shardload.gguf.tensor import TensorInfo, check_layout, tensor_nbytes, tensor_type

Value = bool | int | float | str | MetadataArray

COUNTS = struct.Struct("<QQ")
UINT32 = struct.Struct("<I")
ARRAY_HEAD = struct.Struct("<IQ")
TENSOR_TAIL = struct.Struct("<IQ")
SCALARS: Mapping[ValueType, struct.Struct] = MappingProxyType(
    {value_type: struct.Struct(layout) for value_type, layout in SCALAR_FORMATS.items()}
)
LEGACY_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"GGML", b"ggml")
MIN_KEY_BYTES = 8 + 4 + 1
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself; offsets of tensors count from the start of the file."""

    version: int
    alignment_bytes: int
    metadata: Mapping[str, Value]
    value_types: Mapping[str, ValueType]
    tensors: Mapping[str, TensorInfo]
    header_bytes: int
    data_offset: int


def parse_header(cursor: Cursor, source: FileMapping) -> Header:
    """Read a header; ``source`` is where its arrays are decoded from later. Raises a GGUFError."""
    version = _version(cursor)
    tensor_count, key_count = cursor.unpack(COUNTS, "the counts of tensors and keys")
    _check_count(cursor, "keys", key_count, MAX_KEYS, MIN_KEY_BYTES)
    metadata, value_types = _Values(cursor, source).read(key_count)
    alignment = _alignment(cursor, metadata, value_types)
    _check_count(cursor, "tensors", tensor_count, MAX_TENSORS, MIN_TENSOR_BYTES)
    found = _tensors(cursor, tensor_count, alignment)
    end = cursor.position
    data_offset = -(-end // alignment) * alignment
    tensors = {
        name: TensorInfo(name, kind, ne, data_offset + offset, tensor_nbytes(cursor.path, name, kind, ne))
        for name, (kind, ne, offset) in found.items()
    }
    check_layout(cursor.path, tensors.values(), cursor.size_bytes)
    return Header(
        version,
        alignment,
        MappingProxyType(metadata),
        MappingProxyType(value_types),
        MappingProxyType(tensors),
        end,
        data_offset,
    )


def _version(cursor: Cursor) -> int:
    if cursor.size_bytes < 4:
        raise NotGGUF(cursor.path, f"is no GGUF file: it has only {cursor.size_bytes} bytes")
    magic = cursor.take(4, "the magic")
    if magic in LEGACY_MAGICS:
        raise NotGGUF(cursor.path, "is a model in a format older than GGUF: convert it again")
    if magic != MAGIC:
        raise NotGGUF(cursor.path, f"is no GGUF file: it starts with {repr(magic)[1:]}, not 'GGUF'")
    version: int = cursor.unpack(UINT32, "the version")[0]
    if version in SUPPORTED_VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise UnsupportedGGUF(cursor.path, "is a big-endian GGUF: convert it to little-endian")
    if version < SUPPORTED_VERSIONS[0]:
        raise UnsupportedGGUF(
            cursor.path, f"is a GGUF of version {version}, which nothing reads any more: convert it again"
        )
    raise UnsupportedGGUF(
        cursor.path,
        f"is a GGUF of version {version}, newer than the {SUPPORTED_VERSIONS[-1]} that this build reads",
    )


def _check_count(cursor: Cursor, what: str, count: int, limit: int, least_bytes: int) -> None:
    if count > limit or count * least_bytes > cursor.remaining_bytes:
        raise cursor.corrupt(f"claims {count} {what} in {cursor.remaining_bytes} bytes")
    cursor.window(count * least_bytes)  # one read for what is surely there


def _alignment(cursor: Cursor, metadata: Mapping[str, Value], value_types: Mapping[str, ValueType]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if value_types.get("general.alignment", ValueType.UINT32) is not ValueType.UINT32 or not isinstance(
        alignment, int
    ):
        raise cursor.corrupt("general.alignment is not a 32-bit unsigned number")
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.corrupt(f"general.alignment is {alignment}, which is no power of two")
    return alignment


def _tensors(
    cursor: Cursor, count: int, alignment: int
) -> dict[str, tuple[TensorType, tuple[int, ...], int]]:
    found: dict[str, tuple[TensorType, tuple[int, ...], int]] = {}
    for index in range(count):
        name = read_name(cursor, f"the name of tensor {index}")
        if name in found:
            raise cursor.corrupt(f"has two tensors named {name!r}")
        dimensions: int = cursor.unpack(UINT32, f"the dimensions of {name!r}")[0]
        if dimensions > MAX_DIMENSIONS:
            raise cursor.corrupt(
                f"tensor {name!r} claims {dimensions} dimensions; there are at most {MAX_DIMENSIONS}"
            )
        ne = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, f"the dimensions of {name!r}"))
        code, offset = cursor.unpack(TENSOR_TAIL, f"the type and offset of {name!r}")
        if offset % alignment:
            raise cursor.corrupt(
                f"tensor {name!r} is at offset {offset}, which is not aligned to {alignment} bytes"
            )
        found[name] = tensor_type(cursor.path, name, code), ne, offset
    return found


def read_name(cursor: Cursor, what: str) -> str:
    """A key or a tensor's name."""
    length: int = cursor.unpack(LENGTH, what)[0]
    if length > MAX_NAME_BYTES:
        raise cursor.corrupt(f"{what} claims {length} bytes; there are at most {MAX_NAME_BYTES}")
    raw = cursor.take(length, what)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.corrupt(f"{what} is not UTF-8: {raw[:80]!r}") from None


class _Values:
    """Reads keys and their values; counts nested arrays over the whole file."""

    def __init__(self, cursor: Cursor, source: FileMapping) -> None:
        self._cursor, self._source = cursor, source
        self._arrays_left = MAX_NESTED_ARRAYS

    def read(self, count: int) -> tuple[dict[str, Value], dict[str, ValueType]]:
        cursor = self._cursor
        values: dict[str, Value] = {}
        types: dict[str, ValueType] = {}
        for index in range(count):
            key = read_name(cursor, f"the name of key {index}")
            if key in values:
                raise cursor.corrupt(f"has the key {key!r} twice")
            types[key] = self._type(cursor.unpack(UINT32, f"the type of {key!r}")[0], key)
            values[key] = self._value(types[key], key)
        return values, types

    def _type(self, code: int, key: str) -> ValueType:
        try:
            return ValueType(code)
        except ValueError:
            raise self._cursor.corrupt(f"{key!r} has a value of the unknown type {code}") from None

    def _value(self, value_type: ValueType, key: str) -> Value:
        cursor, what = self._cursor, f"the value of {key!r}"
        if value_type is ValueType.ARRAY:
            return self._array(key, MAX_ARRAY_DEPTH)
        if value_type is ValueType.STRING:
            length: int = cursor.unpack(LENGTH, what)[0]
            return cursor.take(length, what).decode("utf-8", "replace")
        value: bool | int | float = cursor.unpack(SCALARS[value_type], what)[0]
        return value

    def _array(self, key: str, depth: int) -> MetadataArray:
        cursor, what = self._cursor, f"the array {key!r}"
        code, count = cursor.unpack(ARRAY_HEAD, what)
        element_type, start = self._type(code, key), cursor.position
        children: list[MetadataArray] = []
        if element_type is ValueType.ARRAY:
            children = self._arrays(key, count, depth - 1)
        elif element_type is ValueType.STRING:
            skip_strings(cursor, count, what)
        else:
            cursor.skip(count * SCALARS[element_type].size, what)
        return MetadataArray(self._source, element_type, count, start, cursor.position - start, children)

    def _arrays(self, key: str, count: int, depth: int) -> list[MetadataArray]:
        if depth == 0:
            raise self._cursor.corrupt(f"{key!r} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        self._cursor.require(count * ARRAY_HEAD.size, f"the array {key!r}")
        self._arrays_left -= count
        if self._arrays_left < 0:
            raise self._cursor.corrupt(f"{key!r} has more than {MAX_NESTED_ARRAYS} arrays in arrays")
        return [self._array(key, depth) for _ in range(count)]
