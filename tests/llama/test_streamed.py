from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import pytest

from shardload.llama.streamed import StreamedWeights, layers_of
from shardload.memory import PAGE_BYTES, Range
from shardload.shards.places import ShardPlaces


def shard(name: str, *working: Range) -> ShardPlaces:
    return ShardPlaces(name, working, (), working)


PLACE = Range(0, 1)


def test_shards_of_one_block_are_one_layer() -> None:
    names = ["embeddings", "block 0", "block 0 expert 0", "block 0 expert 1", "block 1", "output"]
    shards = [shard(name, PLACE) for name in names]
    layers = [[one.name for one in layer] for layer in layers_of(shards, tied=False)]
    assert layers == [["block 0", "block 0 expert 0", "block 0 expert 1"], ["block 1"], ["output"]]


@pytest.mark.parametrize("order", [1, -1])
def test_tied_embeddings_are_the_output(order: int) -> None:
    shards = [shard(name, PLACE) for name in ("embeddings", "block 0")][::order]
    assert [layer[0].name for layer in layers_of(shards, tied=True)] == ["block 0", "embeddings"]


def test_shards_without_a_place_are_no_layer() -> None:
    assert layers_of([shard("block 0"), shard("output", PLACE)], tied=False) == [[shard("output", PLACE)]]
    assert layers_of([], tied=True) == []


class Cursor:
    """Follows nothing."""

    progress = 0.5

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, kind: str) -> None:
        self.calls.append(kind)

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture
def pages() -> Iterator[Range]:
    with mmap.mmap(-1, 16 * PAGE_BYTES) as private:
        shown = ctypes.c_char.from_buffer(private)
        place = Range(ctypes.addressof(shown), len(private))
        del shown
        yield place


@pytest.fixture
def streamed(pages: Range) -> Iterator[StreamedWeights]:
    half = pages.length // 2
    shards = [shard(f"block {number}", Range(pages.address + number * half, half)) for number in range(2)]
    made = StreamedWeights(shards, 4 * PAGE_BYTES, tied=False, window_bytes=PAGE_BYTES)
    yield made
    made.close()


@pytest.mark.parametrize(("tokens", "kind"), [(1, "answer"), (2, "prompt")])
def test_a_step_is_followed(streamed: StreamedWeights, tokens: int, kind: str) -> None:
    cursor: Any = Cursor()
    with streamed.step(tokens, cursor):
        assert cursor.calls == [kind]
    assert cursor.calls == [kind, "end"]
    assert streamed.stats.passes == 1


def test_a_step_that_fails_is_no_measure(streamed: StreamedWeights) -> None:
    cursor: Any = Cursor()
    with pytest.raises(KeyError), streamed.step(1, cursor):
        raise KeyError
    assert cursor.calls == ["answer"]
    with streamed.step(1, None):
        pass


def test_a_step_goes_on_when_the_streaming_has_ended(streamed: StreamedWeights) -> None:
    streamed.close()
    steps = 0
    with streamed.step(1, None):
        steps += 1
    assert steps == 1
    assert streamed.stats.passes == 0
