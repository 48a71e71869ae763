from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shardload.library.relief import Context, Holding, PageOut, Relief, reclaimable_bytes, relieve

NOW = 1000.0


def holding(
    key: str, *, last_used: float = 0.0, pages: int = 100, kept: int = 25, closing: int = 10, **values: int
) -> Holding:
    return Holding(
        key=key,
        pages_bytes=pages,
        kept_bytes=kept,
        closing_bytes=closing,
        last_used=last_used,
        second_bytes=values.get("second", 0),
        active=bool(values.get("active", 0)),
        others=values.get("others", 0),
    )


def with_context(
    made: Holding, *, private: int = 20, parkable: int = 15, stays_until: float = -math.inf
) -> Holding:
    context = Context(f"{made.key}!", private, parkable, made.last_used, stays_until)
    return replace(made, contexts=(*made.contexts, context))


def test_second_layouts_leave_first_and_those_in_use_after_idle_ones() -> None:
    idle, busy = holding("idle", second=50), holding("busy", second=50, active=1)
    found = relieve(40, [busy, idle], NOW)
    assert found == Relief(page_outs=(PageOut("idle", 100, 50),), freed_bytes=50)
    found = relieve(60, [busy, idle], NOW)
    assert (found.seconds, found.freed_bytes) == ((PageOut("busy", 100, 50),), 100)
    assert relieve(101, [busy], NOW) == Relief()


def test_pages_leave_by_idle_time_and_no_more_than_needed() -> None:
    old, new = holding("old", last_used=0), holding("new", last_used=900)
    assert relieve(30, [new, old], NOW).page_outs == (PageOut("old", 70, 30),)
    assert relieve(80, [new, old], NOW).page_outs == (PageOut("old", 25, 75), PageOut("new", 95, 5))


def test_what_is_dear_to_bring_back_stays_longer() -> None:
    large = holding("large", last_used=0, pages=8_000_000_000, kept=0)
    small = holding("small", last_used=500, pages=1_000_000_000, kept=0)
    found = relieve(9_000_000_000, [large, small], NOW)
    assert {each.holding for each in found.page_outs} == {"large", "small"}
    assert relieve(1_000_000_000, [large, small], NOW).page_outs[0].holding == "large"
    # The more is wanted, the more of the large one would have to come back.
    assert relieve(8_000_000_000, [large, small], NOW).page_outs == (
        PageOut("small", 0, 1_000_000_000),
        PageOut("large", 1_000_000_000, 7_000_000_000),
    )


def test_contexts_are_parked_then_closed() -> None:
    a = with_context(holding("a"))
    found = relieve(80, [a], NOW)
    assert (found.page_outs, [each.key for each in found.parks]) == ((PageOut("a", 35, 65),), ["a!"])
    found = relieve(95, [a], NOW)
    assert ([each.key for each in found.contexts], found.parks) == (["a!"], ())
    assert found.freed_bytes == 95


def test_rest_of_the_pages_then_whole_models() -> None:
    a = with_context(holding("a"))
    found = relieve(110, [a], NOW)
    assert (found.page_outs, found.weights) == ((PageOut("a", 10, 90),), ())
    found = relieve(121, [a], NOW)
    assert found == Relief(weights=("a",), freed_bytes=130)
    assert relieve(131, [a], NOW) == Relief()
    assert relieve(131, [a], NOW, partly=True).freed_bytes == 130
    assert relieve(121, [replace(a, others=1)], NOW) == Relief()


def test_gently_takes_what_models_can_work_without() -> None:
    a = with_context(holding("a", second=40))
    found = relieve(1000, [a], NOW, gently=True, partly=True)
    assert (found.page_outs, [each.key for each in found.parks]) == ((PageOut("a", 25, 115),), ["a!"])
    assert (found.contexts, found.weights) == ((), ())


def test_small_things_are_spared_when_a_large_one_must_go() -> None:
    small = holding("small", last_used=0, pages=5, kept=0, closing=0)
    large = holding("large", last_used=1, pages=0, kept=0, closing=1000)
    assert relieve(50, [small, large], NOW) == Relief(weights=("large",), freed_bytes=1000)


def test_just_opened_ones_stay() -> None:
    new, old = replace(holding("new"), stays_until=NOW + 10), holding("old", last_used=500)
    assert relieve(30, [new, old], NOW).page_outs == (PageOut("old", 70, 30),)
    assert relieve(150, [new, old], NOW).retry_at == NOW + 10
    assert relieve(150, [new, old], NOW + 10).freed_bytes == 150
    assert relieve(500, [new, old], NOW).retry_at is None
    kept = with_context(holding("kept"), stays_until=NOW + 5)
    assert relieve(115, [kept], NOW).retry_at == NOW + 5


Rows = Sequence[tuple[bool, int, int, int, int, list[tuple[int, int, float, float]], int, float]]

SMALL = st.integers(0, 60)
CONTEXTS = st.lists(
    st.tuples(SMALL, SMALL, st.integers(0, 9), st.sampled_from([-1.0, NOW + 1])).map(
        lambda row: (row[0], min(row[0], row[1]), float(row[2]), row[3])
    ),
    max_size=3,
)
HOLDINGS = st.lists(
    st.tuples(
        st.booleans(),
        SMALL,
        SMALL,
        SMALL,
        SMALL,
        CONTEXTS,
        st.integers(0, 1),
        st.sampled_from([-1.0, NOW + 1]),
    ),
    max_size=5,
)


def build(rows: Rows) -> list[Holding]:
    return [
        Holding(
            key=index,
            active=active,
            second_bytes=second,
            pages_bytes=pages,
            kept_bytes=kept,
            closing_bytes=closing,
            contexts=tuple(
                Context((index, number), private, parkable, used, stays)
                for number, (private, parkable, used, stays) in enumerate(contexts)
            ),
            others=others,
            stays_until=stays_until,
        )
        for index, (active, second, pages, kept, closing, contexts, others, stays_until) in enumerate(rows)
    ]


def freed_bytes(found: Relief, holdings: Sequence[Holding]) -> int:
    """What the steps of a relief give back, counted anew."""
    by_key = {each.key: each for each in holdings}
    total = sum(each.nbytes for each in (*found.page_outs, *found.seconds))
    total += sum(context.parkable_bytes for context in found.parks)
    total += sum(context.private_bytes for context in found.contexts)
    for key in found.weights:
        whole = by_key[key]
        total += whole.second_bytes + whole.pages_bytes + whole.closing_bytes
        total += sum(context.private_bytes for context in whole.contexts)
    return total


@given(HOLDINGS, st.integers(1, 500), st.booleans(), st.booleans())
def test_reliefs_are_enough_and_take_nothing_that_stays(
    rows: Rows, wanted: int, gently: bool, partly: bool
) -> None:
    holdings = build(rows)
    found = relieve(wanted, holdings, NOW, gently=gently, partly=partly)
    by_key = {each.key: each for each in holdings}
    assert freed_bytes(found, holdings) == found.freed_bytes
    if found.freed_bytes and not partly:
        assert found.freed_bytes >= wanted
    for page_out in found.page_outs:
        assert not by_key[page_out.holding].active
        assert 0 <= page_out.keep_bytes <= by_key[page_out.holding].pages_bytes
    for page_out in found.seconds:
        assert by_key[page_out.holding].active
        assert page_out.keep_bytes == by_key[page_out.holding].pages_bytes
    for key in found.weights:
        assert not by_key[key].active
        assert not by_key[key].others
        assert by_key[key].stays_until <= NOW
    for context in (*found.parks, *found.contexts):
        assert context.stays_until <= NOW
    assert not {context.key for context in found.parks} & {context.key for context in found.contexts}
    if gently:
        assert not found.contexts
        assert not found.weights


@given(HOLDINGS, st.integers(1, 500))
def test_what_can_be_had_is_found(rows: Rows, wanted: int) -> None:
    holdings = [replace(each, stays_until=-1.0) for each in build(rows)]
    holdings = [
        replace(each, contexts=tuple(replace(context, stays_until=-1.0) for context in each.contexts))
        for each in holdings
    ]
    there = reclaimable_bytes(holdings)
    found = relieve(wanted, holdings, NOW)
    assert (found.freed_bytes >= wanted) == (there >= wanted)
    assert relieve(there + 1, holdings, NOW, partly=True).freed_bytes == there


@given(HOLDINGS, st.integers(1, 500))
def test_no_single_step_is_in_vain(rows: Rows, wanted: int) -> None:
    holdings = build(rows)
    found = relieve(wanted, holdings, NOW)
    surplus = found.freed_bytes - wanted
    if not found.freed_bytes:
        return
    assert surplus >= 0
    for context in found.parks:
        assert context.parkable_bytes > surplus
    for context in found.contexts:
        assert context.private_bytes - context.parkable_bytes > surplus
