from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from shardload.memory import PAGE_BYTES, Range
from shardload.memory.division import divide, hold_within, subtract, total_bytes, without_overlaps
from shardload.memory.pages import PIECE_BYTES

ranges = st.builds(
    lambda page, skip, length: Range(page * PAGE_BYTES + skip, length),
    st.integers(0, 3000),
    st.integers(0, PAGE_BYTES - 1),
    st.integers(0, 2000 * PAGE_BYTES),
)
layers_of_ranges = st.lists(st.lists(ranges, max_size=5), max_size=6)


def pages(places: Iterable[Range]) -> list[int]:
    """Every page that is touched, as often as it is."""
    return [
        page
        for place in places
        if place.length
        for page in range(place.address // PAGE_BYTES, -(-place.end // PAGE_BYTES))
    ]


@given(layers_of_ranges, st.floats(-0.1, 1.2))
def test_every_page_is_held_or_streamed_and_no_more_is_held_than_allowed(
    layers: list[list[Range]], share: float
) -> None:
    touched = set(pages(place for layer in layers for place in layer))
    hold_bytes = int(len(touched) * PAGE_BYTES * share)
    divisions = divide(layers, hold_bytes)
    assert len(divisions) == len(layers)
    listed = pages(place for one in divisions for place in (*one.held, *one.streamed))
    assert sorted(listed) == sorted(touched)
    held = sum(one.held_bytes for one in divisions)
    assert held <= max(0, hold_bytes)
    for one in divisions:
        for place in (*one.held, *one.streamed):
            assert place.address % PAGE_BYTES == place.length % PAGE_BYTES == 0
            assert place.length > 0


@given(st.integers(4, 60), st.integers(0, 100), st.integers(0, 2**22), st.integers(1, 12))
def test_the_share_is_even(pieces: int, percent: int, start: int, count: int) -> None:
    length = pieces * PIECE_BYTES + 3 * PAGE_BYTES
    layers = [[Range(start + number * length, length)] for number in range(count)]
    whole = sum(map(total_bytes, without_overlaps(layers)))
    divisions = divide(layers, whole * percent // 100)
    for layer, division in zip(layers, divisions, strict=True):
        assert abs(division.held_bytes - total_bytes(layer) * percent / 100) <= 2 * PIECE_BYTES
    held = sum(one.held_bytes for one in divisions)
    assert whole * percent // 100 - held <= PIECE_BYTES


def test_streamed_parts_are_whole_pieces() -> None:
    length = 10 * PIECE_BYTES + 12345
    divisions = divide([[Range(777 + number * length, length)] for number in range(5)], 30 * PIECE_BYTES)
    for division in divisions:
        assert len(division.streamed) == 1
        assert division.streamed[0].address % PIECE_BYTES == division.streamed[0].length % PIECE_BYTES == 0


def test_short_ranges_are_divided_by_pages() -> None:
    layer = [Range(0, 3 * PAGE_BYTES), Range(10 * PAGE_BYTES, 3 * PAGE_BYTES)]
    (division,) = divide([layer], 4 * PAGE_BYTES)
    assert division.held == (Range(0, 3 * PAGE_BYTES), Range(10 * PAGE_BYTES, PAGE_BYTES))
    assert division.streamed == (Range(11 * PAGE_BYTES, 2 * PAGE_BYTES),)


def test_a_page_of_two_layers_belongs_to_the_first() -> None:
    first, second = divide([[Range(0, PAGE_BYTES + 1)], [Range(PAGE_BYTES + 1, PAGE_BYTES)]], 0)
    assert first.streamed == (Range(0, 2 * PAGE_BYTES),)
    assert second.streamed == (Range(2 * PAGE_BYTES, PAGE_BYTES),)


def test_neighbours_become_one() -> None:
    page = PAGE_BYTES
    layer = [Range(0, page - 5), Range(page, page), Range(5 * page, page), Range(2 * page, page)]
    assert without_overlaps([layer]) == [[Range(0, 2 * page), Range(5 * page, page), Range(2 * page, page)]]


def test_nothing_to_divide() -> None:
    assert divide([], 100) == ()
    (empty,) = divide([[]], 100)
    assert empty.held == empty.streamed == ()


@given(st.lists(ranges, max_size=4), st.lists(ranges, max_size=4))
def test_subtraction(places: list[Range], others: list[Range]) -> None:
    left = subtract(without_overlaps([places])[0], without_overlaps([others])[0])
    assert sorted(pages(left)) == sorted(set(pages(places)) - set(pages(others)))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(0, 5000), st.integers(0, 300))
def test_what_is_held_leaves_room_for_the_rest(sizes: list[int], limit: int, window: int) -> None:
    places, address = [], 0
    for pages_of_layer in sizes:
        places.append([Range(address, pages_of_layer * PAGE_BYTES)])
        address += pages_of_layer * PAGE_BYTES
    held = hold_within(places, limit * PAGE_BYTES, window * PAGE_BYTES, 1.5)
    if sum(sizes) <= limit:
        assert held == sum(sizes) * PAGE_BYTES
    elif held:
        streamed = 1 - held / (sum(sizes) * PAGE_BYTES)
        behind = 1.5 * max(sizes) * PAGE_BYTES * streamed
        assert held + window * PAGE_BYTES + behind <= limit * PAGE_BYTES + 1
