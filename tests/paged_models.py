"""What the tests of models' pages have in common: ``from paged_models import paged, resident``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from shardload import memory
from shardload.gguf import TensorInfo
from shardload.gguf.constants import TENSOR_TYPES
from shardload.library.seen_pages import SeenPages
from shardload.llama import Model
from shardload.llama.paged import PagedWeights
from shardload.llama.placed import PlacedTensor
from shardload.memory import Range
from shardload.memory.prefetch import Prefetcher
from shardload.shards.places import merged, without
from shardload.shards.shard import shards_of

WINDOW_BYTES = 64 * 2**10


def info(placed: PlacedTensor) -> TensorInfo:
    ne = tuple(length for at, length in enumerate(placed.ne) if at == 0 or length > 1)
    return TensorInfo(placed.name, TENSOR_TYPES[placed.type_code], ne, 0, placed.file.length)


@contextmanager
def paged(model: Model, prefetcher: Prefetcher | None = None) -> Iterator[PagedWeights]:
    with ExitStack() as stack:
        prefetcher = prefetcher or stack.enter_context(closing(Prefetcher()))
        shards = shards_of(map(info, model.tensors))
        yield stack.enter_context(closing(PagedWeights(model, shards, prefetcher, window_bytes=WINDOW_BYTES)))


def write_out(folder: Path) -> None:
    """Have all files on the disk, so that their pages can leave."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def packed_bytes(weights: PagedWeights) -> int:
    return sum(place.length for place in weights.packed)


def resident(weights: PagedWeights) -> tuple[int, int]:
    working = [place for shard in weights.places for place in shard.working]
    second = [place for shard in weights.places for place in shard.second]
    seen = SeenPages.of([*working, *second])
    assert seen is not None
    return seen.resident_bytes(working), seen.resident_bytes(second)


def total(weights: PagedWeights) -> int:
    return sum(shard.nbytes for shard in weights.places)


def read_all(weights: PagedWeights) -> None:
    for shard in weights.places:
        for place in (*shard.working, *shard.second):
            memory.populate_read(place.address, place.length)


def shared_bytes(places: Iterable[Range], others: Iterable[Range]) -> int:
    """The bytes that are in some ranges and in others."""
    ones = merged(places, gap_bytes=0)
    return sum(one.length for one in ones) - sum(
        one.length for one in without(ones, merged(others, gap_bytes=0))
    )
