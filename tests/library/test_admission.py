"""Whose turn it is, and what leaves memory for whoever is next."""

from __future__ import annotations

import pytest
from fake_library import OpenLibrary
from fake_opener import COMPUTE_BYTES, ONE_MODEL, VOCABULARY_BYTES

from shardload.errors import AllPinned, InsufficientMemory

pytestmark = pytest.mark.anyio


async def test_pages_leave_before_models(open_library: OpenLibrary) -> None:
    async with open_library("abcd", budget=3) as library:
        for name in "abca":
            await library.use(name)
        held = await library.lease("d")
        assert library.open_names == {"a", "b", "c", "d"}
        page_outs = [move for move in library.opener.moves if move[1] == "page out"]
        assert page_outs == [("b", "page out", 25), ("c", "page out", 45)]
        assert library.used_bytes == library.opener.open_bytes == 3 * ONE_MODEL
        assert (library.status("b").warm_share, library.status("b").page_outs) == (0.25, 75)
        assert not library.opener.closes
        held.release()
        await library.use("b")
        assert ("b", "bring back") in library.opener.moves
        assert library.opener.opens == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_whole_models_leave_last(open_library: OpenLibrary) -> None:
    async with open_library("abcd", budget=1) as library:
        for name in "abc":
            await library.use(name)
        assert library.open_names == {"c"}
        assert library.opener.closes == [("a", True), ("b", True)]
        assert library.status("b").evictions == 1
        await library.use("b")
        assert library.open_names == {"b"}


async def test_leased_models_stay(open_library: OpenLibrary) -> None:
    async with open_library(budget=2) as library:
        held = await library.lease("a")
        await library.use("b")
        await library.use("c")
        assert library.open_names == {"a", "c"}
        held.release()


async def test_models_wait_their_turn(open_library: OpenLibrary) -> None:
    async with open_library(budget=1) as library:
        held = await library.lease("a")
        b, c = library.request("b"), library.request("c")
        await library.rest()
        assert b.waits
        assert c.waits
        held.release()
        await library.rest()
        assert b.lease is not None
        assert c.waits
        b.release()
        await library.rest()
        assert c.lease is not None


async def test_victim_counts_until_it_is_closed(open_library: OpenLibrary) -> None:
    async with open_library(budget=1) as library:
        await library.use("a")
        go_on = library.opener.hold_close("a")
        b = library.request("b")
        await library.rest()
        assert b.waits
        assert library.used_bytes == ONE_MODEL
        assert library.opener.opens["b"] == 0
        go_on()
        await library.rest()
        assert b.lease is not None


async def test_request_for_a_victim_that_is_closing(open_library: OpenLibrary) -> None:
    async with open_library(budget=1) as library:
        await library.use("a")
        go_on = library.opener.hold_close("a")
        b = library.request("b")
        await library.rest()
        a = library.request("a")
        await library.rest()
        go_on()
        await library.rest()
        assert b.lease is not None
        assert a.waits
        b.release()
        await library.rest()
        assert a.lease is not None
        assert library.opener.opens == {"a": 2, "b": 1}


async def test_a_context_that_leaves_for_an_older_request_is_not_opened_before_it_has_left(
    open_library: OpenLibrary,
) -> None:
    little_of_a = 25 + VOCABULARY_BYTES + COMPUTE_BYTES
    async with open_library("ab", budget=1 + little_of_a / ONE_MODEL) as library:
        for name in "ab":
            await library.use(name)
        await library.manager.unload("b")
        manager = library.manager
        assert manager._ledger.used_bytes() == little_of_a
        manager._budget.configured = ONE_MODEL + little_of_a - COMPUTE_BYTES
        waiters = {}
        for name in "ba":  # in one turn
            entry = library.catalog.get(name)
            prediction = library.opener.predict(entry, "generate")
            wanted = manager._ledger.instance(entry, "generate", prediction, 300.0)
            waiters[name] = manager._ledger.enqueue(wanted, entry, library.clock.now, None, None)
        manager.turn()
        assert wanted.state == "closing"
        for name in "ba":
            await library.rest()
            lease = waiters[name].lease
            assert lease is not None
            lease.release()
    assert not library.opener.engines


async def test_nobody_passes_a_request_that_waited_long(open_library: OpenLibrary) -> None:
    async with open_library(budget=1, max_wait_seconds=10) as library:
        held = await library.lease("a")
        b = library.request("b")
        await library.rest()
        joined = library.request("a")
        await library.rest()
        assert joined.lease is not None
        await library.pass_time(10)
        late = library.request("a")
        await library.rest()
        assert late.waits
        held.release()
        joined.release()
        await library.rest()
        assert b.lease is not None
        assert late.waits
        b.release()
        await library.rest()
        assert late.lease is not None


async def test_small_ones_pass_a_large_one_for_a_while(open_library: OpenLibrary) -> None:
    async with open_library(budget=2, max_wait_seconds=10) as library:
        library.opener.sizes["b"] = 200
        held = await library.lease("a")
        b = library.request("b")
        await library.rest()
        assert b.waits
        await library.use("c")
        await library.pass_time(11)
        c = library.request("c")
        await library.rest()
        assert c.waits
        held.release()
        await library.rest()
        assert b.lease is not None
        b.release()
        await library.rest()
        assert c.lease is not None


async def test_idle_weights_count_with_what_is_resident(open_library: OpenLibrary) -> None:
    async with open_library(budget=2.3) as library:
        library.opener.resident |= {"a": 10, "b": 10}
        await library.use("a")
        await library.use("b")
        await library.use("c")
        assert library.open_names == {"a", "b", "c"}
        assert library.opener.measurements > 0
        assert library.status("a").resident_bytes == 10


async def test_activation_of_an_open_model_makes_room(open_library: OpenLibrary) -> None:
    async with open_library(budget=2) as library:
        library.opener.resident |= {"a": 0}
        await library.use("b")
        await library.use("a")
        held = await library.lease("c")
        assert ("b", "page out", 70) in library.opener.moves
        again = await library.lease("a")
        assert library.used_bytes <= 2 * ONE_MODEL
        held.release()
        again.release()


async def test_does_not_fit_alone(open_library: OpenLibrary) -> None:
    async with open_library(budget=2) as library:
        library.opener.sizes["a"] = 10_000
        with pytest.raises(InsufficientMemory) as caught:
            await library.lease("a")
        assert (caught.value.needed_bytes, caught.value.budget_bytes) == (530, 260)
        assert "530 bytes" in str(caught.value)
        assert "260 bytes" in str(caught.value)
        await library.use("b")


async def test_all_pinned(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=2, text="[models.a]\npin = true") as library:
        library.manager.pin("b", True)
        await library.use("a")
        await library.use("b")
        with pytest.raises(AllPinned, match="pinned models hold: a, b") as caught:
            await library.lease("c")
        assert caught.value.pinned == ("a", "b")
        assert library.status("a").pinned
        library.manager.pin("a", False)
        await library.use("c")
        assert library.open_names == {"b", "c"}


async def test_tight_memory_closes_a_context_and_keeps_the_weights(open_library: OpenLibrary) -> None:
    async with open_library("a", budget=1.1, text="[models.wide]\nbase = 'a'\nctx = 1024") as library:
        await library.use("a")
        await library.use("wide")
        assert library.opener.opens == {"a": 1}
        assert library.open_names == {"wide"}
        assert library.status("a").state == "parked"
        assert library.used_bytes == ONE_MODEL + COMPUTE_BYTES
    async with open_library("a", budget=1.03, text="[models.wide]\nbase = 'a'\nctx = 1024") as library:
        await library.use("a")
        await library.use("wide")
        assert library.opener.opens == {"a": 1}
        assert len(library.opener.engines) == 1
        assert library.used_bytes == ONE_MODEL


async def test_open_that_took_more_than_predicted_is_corrected(open_library: OpenLibrary) -> None:
    async with open_library(budget=3) as library:
        for name in "ab":
            await library.use(name)
        library.opener.extra_private_bytes = 200
        await library.use("c")
        assert "c" in library.open_names
        assert "a" not in library.open_names
        assert library.used_bytes <= 3 * ONE_MODEL + 200


async def test_just_opened_models_are_worth_their_open(open_library: OpenLibrary) -> None:
    async with open_library(budget=1, min_residency_seconds=5) as library:
        library.opener.open_seconds = 3.0
        await library.use("a")
        library.opener.open_seconds = 0.0
        b = library.request("b")
        await library.rest()
        assert b.waits
        await library.pass_time(3)
        assert b.lease is not None
