"""Which order of bytes a step computes with: the file's own or the packed one. Pure.

Neither wins everywhere: steps of few tokens want the packed order, and for some types and processors steps
of many are faster from the file's. What was measured decides; what was not is taken packed, since those are
the bytes that every step has in memory.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

Layout = Literal["file", "packed"]
LEAST_GAIN = 1.05
"""The file's order must be so many times faster: both in memory take twice the room."""
LEAST_TOKENS = 128
"""A step of fewer gains less than bringing a second order in would cost. Seeded texts have no others."""
MAX_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens a second by the tokens of a step, for one type in both orders."""

    file: Mapping[int, float]
    packed: Mapping[int, float]

    def seconds_per_token(self, layout: Layout, tokens: int) -> float:
        """How long a token takes in a step of so many, up to a factor; between sizes in proportion."""
        return 1 / _between(self.file if layout == "file" else self.packed, tokens)


class LayoutTable:
    """What was measured for each type, on one processor with one build and number of threads. Immutable."""

    def __init__(self, speeds: Mapping[str, Speeds]) -> None:
        # ggml and GGUF files spell types in other cases.
        self.speeds = {
            name.upper(): one for name, one in speeds.items() if one.file.keys() & one.packed.keys()
        }

    def choose(self, types: Mapping[str, int], tokens: int) -> Layout:
        """The order for a step of ``tokens``, of a model whose packed tensors have so many bytes per type."""
        if tokens < LEAST_TOKENS:
            return "packed"
        file = packed = 0.0
        for name, nbytes in types.items():
            if (speeds := self.speeds.get(name.upper())) is not None and nbytes > 0:
                file += nbytes * speeds.seconds_per_token("file", tokens)
                packed += nbytes * speeds.seconds_per_token("packed", tokens)
        return "file" if packed > file * LEAST_GAIN else "packed"

    def thresholds(self, types: Mapping[str, int]) -> tuple[tuple[int, Layout], ...]:
        """Steps of how many tokens and more take which order; ascending, the first from 1 token on."""
        found: list[tuple[int, Layout]] = []
        sizes = {
            size for speeds in self.speeds.values() for size in speeds.file.keys() & speeds.packed.keys()
        }
        for tokens in sorted({1, LEAST_TOKENS, *sizes}):
            layout = self.choose(types, tokens)
            if not found or layout != found[-1][1]:
                first = self._first(types, layout, found[-1][0], tokens) if found else tokens
                found.append((first, layout))
        return tuple(found)

    def missing(self, types: Iterable[str]) -> list[str]:
        """Those of some types that were not measured."""
        return [name for name in types if name.upper() not in self.speeds]

    def with_speeds(self, speeds: Mapping[str, Speeds]) -> LayoutTable:
        """This table and more."""
        return LayoutTable({**self.speeds, **{name.upper(): one for name, one in speeds.items()}})

    def _first(self, types: Mapping[str, int], layout: Layout, above: int, tokens: int) -> int:
        """The smallest step that takes ``layout``, between one that does not and one that does."""
        low, high = above, tokens
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.choose(types, middle) == layout else (middle, high)
        return high


def _between(measured: Mapping[int, float], tokens: int) -> float:
    """A speed by what was measured around it, straight on logarithmic scales, and level beyond the ends."""
    sizes = sorted(measured)
    at = bisect.bisect_left(sizes, tokens)
    if at == len(sizes) or sizes[at] == tokens or at == 0:
        return measured[sizes[min(at, len(sizes) - 1)]]
    low, high = sizes[at - 1], sizes[at]
    share = math.log(tokens / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(measured[low]) + share * math.log(measured[high]))


_Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
_Speed = Annotated[float, msgspec.Meta(gt=0, lt=1e15)]


class _SpeedsRecord(msgspec.Struct, frozen=True):
    file: dict[_Tokens, _Speed]
    packed: dict[_Tokens, _Speed]


def machine_key(build: str, threads: int) -> str:
    """Under what a table is remembered; ``build`` tells the build of llama.cpp and the processor."""
    return f"{build} {threads}"


def encode_tables(tables: Mapping[str, LayoutTable]) -> bytes:
    """Tables by their keys as JSON."""
    return msgspec.json.format(
        msgspec.json.encode(
            {
                key: {
                    name: _SpeedsRecord(dict(one.file), dict(one.packed))
                    for name, one in table.speeds.items()
                }
                for key, table in tables.items()
            }
        )
    )


def decode_tables(data: bytes) -> dict[str, LayoutTable]:
    """Read `encode_tables`' output; what is damaged holds nothing."""
    try:
        read = msgspec.json.decode(data, type=dict[str, dict[str, _SpeedsRecord]])
    except ValueError:
        return {}
    return {
        key: LayoutTable({name: Speeds(one.file, one.packed) for name, one in table.items()})
        for key, table in read.items()
    }
