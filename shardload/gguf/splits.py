"""Models in several files: ``name-00001-of-00005.gguf`` and its siblings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from shardload.errors import CorruptGGUF
from shardload.gguf.header import Header
from shardload.gguf.tensor import TensorInfo

SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def split_count(path: str, header: Header) -> int:
    """How many files the model has; 1 for one that is not split."""
    return _number(path, header, "split.count", 1) or 1


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """All parts in order, from the name of any; raises CorruptGGUF for a name that does not tell."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or not 1 <= int(match["number"]) <= count:
        raise CorruptGGUF(
            path,
            f"is one of {count} parts: its name must end in -00001-of-{count:05}.gguf (and so on), "
            "so that the others can be found",
        )
    return tuple(
        path.with_name(f"{match['prefix']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    )


def check_part(path: Path, header: Header, index: int, count: int) -> None:
    """Raise CorruptGGUF unless the file is part ``index`` (from 0) of ``count``."""
    stated = _number(str(path), header, "split.count", 1)
    if stated != count:
        raise CorruptGGUF(path, f"says it is one of {stated} parts; the others say {count}")
    number = _number(str(path), header, "split.no", 0)
    if number != index:
        raise CorruptGGUF(path, f"says it is part {number + 1}, and its name says part {index + 1}")


def merge_tensors(paths: Sequence[Path], headers: Sequence[Header]) -> Mapping[str, TensorInfo]:
    """The tensors of all parts; raises CorruptGGUF where two share a name or some are not there."""
    merged: dict[str, TensorInfo] = {}
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for name, tensor in header.tensors.items():
            if name in merged:
                raise CorruptGGUF(
                    path, f"has the tensor {name!r}, which {paths[merged[name].part].name} has too"
                )
            merged[name] = replace(tensor, part=index) if index else tensor
    if len(headers) > 1:
        stated = _number(str(paths[0]), headers[0], "split.tensors.count", len(merged))
        if stated != len(merged):
            raise CorruptGGUF(paths[0], f"says that its parts have {stated} tensors; they have {len(merged)}")
    return MappingProxyType(merged)


def _number(path: str, header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CorruptGGUF(path, f"{key} is {value!r}, which is no count")
    return value
