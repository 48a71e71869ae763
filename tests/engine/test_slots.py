from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.engine.slots import Slot, SlotTable, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=40)


@given(tokens, tokens, st.integers(0, 50))
def test_common_prefix_counts_the_equal_beginning(left: list[int], right: list[int], limit: int) -> None:
    expected = 0
    for one, other in zip(left, right, strict=False):
        if one != other or expected == limit:
            break
        expected += 1
    assert common_prefix(left, right, limit) == expected


def occupy(table: SlotTable, prompt: list[int]) -> Slot:
    placement = table.place(prompt, reuse=True)
    assert placement is not None
    return table.take(placement, prompt, len(prompt))


def cache(table: SlotTable, prompt: list[int]) -> Slot:
    slot = occupy(table, prompt)
    table.release(slot)
    return slot


def test_no_slot_while_all_are_busy() -> None:
    table = SlotTable(2)
    slots = {occupy(table, [1]).index, occupy(table, [2]).index}
    assert slots == {0, 1}
    assert not table.has_idle
    assert table.place([3], reuse=True) is None


def test_a_continued_conversation_goes_on_in_its_slot() -> None:
    table = SlotTable(3)
    cache(table, [9] * 20)
    old = cache(table, list(range(10)))
    placement = table.place([*range(10), 50, 51], reuse=True)
    assert placement is not None
    assert (placement.slot, placement.cached_tokens, placement.source) == (old, 10, None)


def test_the_last_token_is_always_computed() -> None:
    table = SlotTable(1)
    cache(table, [1, 2, 3])
    placement = table.place([1, 2, 3], reuse=True)
    assert placement is not None
    assert placement.cached_tokens == 2


def test_a_running_sequence_shares_its_prefix() -> None:
    table = SlotTable(2)
    running = occupy(table, [1, 2, 3, 4])
    placement = table.place([1, 2, 3, 9], reuse=True)
    assert placement is not None
    assert placement.source is running
    assert placement.slot is not running
    assert (placement.cached_tokens, placement.shared_tokens) == (3, 3)


def test_a_long_cache_is_not_torn_for_a_short_prefix() -> None:
    table = SlotTable(2)
    long = cache(table, list(range(100)))
    placement = table.place([0, 1, 2, 500, 501], reuse=True)
    assert placement is not None
    assert placement.source is long
    assert placement.slot is not long
    assert (placement.cached_tokens, placement.shared_tokens) == (3, 0)


def test_the_only_idle_slot_is_taken_over_whatever_it_holds() -> None:
    table = SlotTable(1)
    long = cache(table, list(range(100)))
    placement = table.place([0, 1, 2, 500], reuse=True)
    assert placement is not None
    assert (placement.slot, placement.cached_tokens, placement.source) == (long, 3, None)


def test_only_computed_tokens_are_shared() -> None:
    table = SlotTable(2)
    running = occupy(table, [1, 2, 3, 4])
    running.length = 1
    placement = table.place([1, 2, 3, 9], reuse=True)
    assert placement is not None
    assert placement.cached_tokens == 1
    assert table.expected_prefix([1, 2, 3, 9]) == 3


def test_without_reuse_or_sharing_nothing_is_cached() -> None:
    table = SlotTable(2)
    occupy(table, [1, 2, 3])
    placement = table.place([1, 2, 3, 4], reuse=False)
    assert placement is not None
    assert placement.cached_tokens == 0
    table.can_share = False
    placement = table.place([1, 2, 3, 4], reuse=True)
    assert placement is not None
    assert placement.cached_tokens == 0
    assert table.expected_prefix([1, 2, 3, 4]) == 0


def test_empty_slots_go_before_old_caches_and_those_before_young_ones() -> None:
    table = SlotTable(3)
    first, second = cache(table, [1]), cache(table, [2])
    assert {first.index, second.index} == {0, 1}
    assert table.oldest_cache() is first
    third = cache(table, [3])
    assert third.index == 2
    replaced = occupy(table, [7, 7])
    assert replaced is first
    assert table.oldest_cache() is second
    second.clear()
    assert table.oldest_cache() is third


@given(
    st.lists(tokens.filter(bool), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    tokens.filter(bool),
)
def test_a_placement_is_sound_and_finds_the_longest_prefix(
    contents: list[list[int]], busy: list[bool], prompt: list[int]
) -> None:
    table = SlotTable(4)
    for slot, content, is_busy in zip(table.slots, contents, busy, strict=False):
        slot.tokens, slot.length, slot.busy = content, len(content), is_busy
    placement = table.place(prompt, reuse=True)
    if placement is None:
        assert all(slot.busy for slot in table.slots)
        return
    assert not placement.slot.busy
    source = placement.source or placement.slot
    kept = placement.cached_tokens
    assert list(source.tokens[:kept]) == prompt[:kept]
    assert kept < len(prompt)
    limit = len(prompt) - 1
    assert kept == max(common_prefix(slot.tokens, prompt, min(slot.length, limit)) for slot in table.slots)
