"""Weights that are read anew for every step: which parts of a model are a layer, and a step through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardload.errors import HandleClosed
from shardload.memory.streaming import WINDOW_BYTES, Streamer, hold_bytes_within
from shardload.shards.places import ShardPlaces
from shardload.shards.shard import EMBEDDINGS

if TYPE_CHECKING:
    from shardload.llama.cursor import Cursor
    from shardload.memory.streaming import StreamStats

EXPERT = " expert "
OTHER_SHARE = 0.15
"""The output is a few nodes of a step's graph; a block is one of many alike."""


class StreamedWeights:
    """A streamer over the shards of one model, in the order of a step. `step` is for whoever computes."""

    def __init__(
        self,
        shards: Sequence[ShardPlaces],
        limit_bytes: int,
        *,
        tied: bool,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """``tied`` tells that the output is the embeddings; otherwise a step reads a few rows of those."""
        layers = layers_of(shards, tied=tied)
        self._window_bytes = window_bytes
        self._ranges = ranges = [[place for shard in layer for place in shard.working] for layer in layers]
        rare = [
            [place for shard in layer if EXPERT in shard.name for place in shard.working] for layer in layers
        ]
        self._streamer = Streamer(
            ranges,
            hold_bytes_within(ranges, limit_bytes, window_bytes),
            window_bytes=window_bytes,
            shares=[1.0 if layer[0].name.startswith("block") else OTHER_SHARE for layer in layers],
            rare=rare,
        )

    @property
    def stats(self) -> StreamStats:
        """What was read and dropped so far."""
        return self._streamer.stats

    def resize(self, limit_bytes: int) -> None:
        """Have more or less in memory."""
        self._streamer.resize(hold_bytes_within(self._ranges, limit_bytes, self._window_bytes))

    def close(self) -> None:
        """Read and drop no more."""
        self._streamer.close()

    @contextmanager
    def step(self, tokens: int, cursor: Cursor | None) -> Iterator[None]:
        """Read ahead of what the body computes, which ``cursor`` follows."""
        if cursor is not None:
            cursor.begin("prompt" if tokens > 1 else "answer")
        try:
            step = self._streamer.begin(lambda: cursor.progress if cursor is not None else None)
        except HandleClosed:  # just now: another one has its place, or none
            yield
            return
        try:
            yield
            if cursor is not None:
                cursor.end()
        finally:
            self._streamer.end(step)


def layers_of(shards: Iterable[ShardPlaces], *, tied: bool) -> list[list[ShardPlaces]]:
    """The shards that a step reads through, those that it computes with together in one layer.

    A mixture's experts belong to their block: which of them a step reads is known when it gets there.
    """
    layers: dict[str, list[ShardPlaces]] = {}
    last: list[ShardPlaces] = []
    for shard in shards:
        if shard.name == EMBEDDINGS:
            last = [shard] if tied else []
        elif shard.working:
            layers.setdefault(shard.name.partition(EXPERT)[0], []).append(shard)
    return [*layers.values(), last] if last else list(layers.values())
