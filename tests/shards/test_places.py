from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shardload.memory import Range
from shardload.shards.places import (
    PADDING_BYTES,
    TensorPlace,
    merged,
    part_of,
    place_shards,
    without,
)
from shardload.shards.shard import Piece, Shard

ranges = st.builds(Range, st.integers(0, 200), st.integers(1, 40))


def whole(name: str, *tensors: tuple[str, int]) -> Shard:
    return Shard(name, tuple(Piece(tensor, 0, nbytes) for tensor, nbytes in tensors), 0)


def addresses(places: object) -> set[int]:
    assert isinstance(places, list | tuple)
    return {at for place in places for at in range(place.address, place.end)}


def test_a_shard_lies_where_its_tensors_lie() -> None:
    shards = [whole("block 0", ("norm", 16), ("q", 1000), ("k", 500)), whole("output", ("head", 2000))]
    tensors = {
        "norm": TensorPlace(Range(100, 16)),
        "q": TensorPlace(Range(1000, 1000), packed=Range(50_000, 1100)),
        "k": TensorPlace(Range(2000, 500), private=True),
        "head": TensorPlace(Range(3000, 2000)),
    }
    block, output = place_shards(shards, tensors)
    assert block.working == (Range(100, 16), Range(50_000, 1100))
    assert block.second == (Range(1000, 1500),)
    assert block.in_file == (Range(100, 16), Range(1000, 1500))
    assert block.nbytes == 1116
    assert output.working == output.in_file == (Range(3000, 2000),)
    assert output.second == ()


def test_tensors_that_are_nowhere_are_left_out() -> None:
    (block,) = place_shards([whole("block 0", ("q", 10))], {})
    assert (block.working, block.second, block.in_file, block.nbytes) == ((), (), (), 0)


def test_experts_have_their_parts_of_either_order() -> None:
    experts = [
        Shard(f"block 0 expert {number}", (Piece("exps", 100 * number, 100),), 100) for number in range(4)
    ]
    tensors = {"exps": TensorPlace(Range(0, 400), packed=Range(10_000, 800))}
    placed = place_shards(experts, tensors)
    assert [shard.working for shard in placed] == [(Range(10_000 + 200 * n, 200),) for n in range(4)]
    assert [shard.second for shard in placed] == [(Range(100 * n, 100),) for n in range(4)]


@given(st.integers(1, 1000), st.integers(1, 3000), st.lists(st.integers(0, 1000), max_size=5))
def test_parts_of_a_tensor_cover_it(tensor_bytes: int, placed_bytes: int, cuts: list[int]) -> None:
    place = Range(7000, placed_bytes)
    bounds = sorted({0, tensor_bytes, *(cut % tensor_bytes for cut in cuts)})
    parts = [
        part_of(place, Piece("t", start, end - start), tensor_bytes)
        for start, end in itertools.pairwise(bounds)
    ]
    assert parts[0].address == place.address
    assert parts[-1].end == place.end
    for one, following in itertools.pairwise(parts):
        assert one.end == following.address


@given(st.lists(ranges))
def test_merged_ranges_are_apart_and_hold_the_same(places: list[Range]) -> None:
    found = merged(places, gap_bytes=0)
    assert addresses(found) == addresses(places)
    for one, following in itertools.pairwise(found):
        assert one.end < following.address


def test_padding_is_merged_too() -> None:
    assert merged([Range(0, 10), Range(10 + PADDING_BYTES, 10)]) == (Range(0, 20 + PADDING_BYTES),)
    apart = (Range(0, 10), Range(11 + PADDING_BYTES, 10))
    assert merged(reversed(apart)) == apart


@given(st.lists(ranges), st.lists(ranges))
def test_what_is_left_without_others(places: list[Range], others: list[Range]) -> None:
    left = list(without(places, merged(others, gap_bytes=0)))
    assert addresses(left) == addresses(places) - addresses(others)
    assert sum(place.length for place in left) == sum(
        len(addresses([place]) - addresses(others)) for place in places
    )
