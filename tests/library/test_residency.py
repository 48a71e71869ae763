"""What of open models is in memory: what they share, what stays, what streams."""

from __future__ import annotations

import msgspec
import pytest
from fake_library import OpenLibrary, moves
from fake_opener import COMPUTE_BYTES, CONTEXT_BYTES, ONE_MODEL, VOCABULARY_BYTES

from shardload.errors import AllPinned, InsufficientMemory

pytestmark = pytest.mark.anyio

TWINS = {name: {"common": 80, name: 20} for name in "abcde"}


async def test_shared_memory_counts_once(open_library: OpenLibrary) -> None:
    async with open_library("abcde", budget=3) as library:
        library.opener.places |= TWINS
        library.opener.foresees_sharing = True
        for name in "abcde":
            await library.lease(name)
        assert (
            library.used_bytes
            == library.opener.open_bytes
            == 80 + 5 * (20 + VOCABULARY_BYTES + CONTEXT_BYTES)
        )
        await library.manager.measure()
        assert [library.status(name).shared_bytes for name in "abcde"] == [80] * 5
        assert library.open_names == set("abcde")


async def test_a_fine_tune_of_an_idle_model_sends_nobody_away(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=2.6) as library:
        library.opener.places |= {name: TWINS[name] for name in "ab"}
        library.opener.foresees_sharing = True
        for name in "acbabcab":
            await library.use(name)
        assert library.used_bytes == library.opener.open_bytes == 220 + 3 * (VOCABULARY_BYTES + CONTEXT_BYTES)
        assert {move[1] for move in library.opener.moves} == {"bring back"}
        assert library.open_names == set("abc")


async def test_sharing_that_is_not_foreseen_counts_after_the_open(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=2) as library:
        library.opener.places |= {name: TWINS[name] for name in "abc"}
        leases = [await library.lease(name) for name in "ab"]
        late = library.request("c")
        await library.rest()
        assert late.waits
        leases[0].release()
        await library.rest()
        assert late.lease is not None
        assert library.used_bytes <= 2 * ONE_MODEL


async def test_what_others_use_stays(open_library: OpenLibrary) -> None:
    async with open_library("abx", budget=2) as library:
        library.opener.places |= {name: TWINS[name] for name in "ab"}
        library.opener.sizes["x"] = 110
        await library.use("a")
        held = await library.lease("b")
        await library.manager.measure()
        assert (library.used_bytes, library.opener.cache["common"]) == (180, 80)
        other = library.request("x")
        await library.rest()
        # All that the idle one has for itself does not make room.
        assert other.waits
        assert library.opener.cache["common"] == 80
        held.release()
        await library.rest()
        assert other.lease is not None
        assert library.used_bytes <= 2 * ONE_MODEL


async def test_a_close_gives_shared_memory_to_those_who_are_left(open_library: OpenLibrary) -> None:
    async with open_library("ab", text="[models.a]\nkeep_alive = 5") as library:
        library.opener.places |= {name: TWINS[name] for name in "ab"}
        await library.use("b")
        await library.use("a")
        await library.manager.measure()
        assert library.used_bytes == 120 + 2 * (VOCABULARY_BYTES + CONTEXT_BYTES)
        await library.pass_time(5)
        assert library.used_bytes == library.opener.open_bytes == 100 + VOCABULARY_BYTES + CONTEXT_BYTES


async def test_pages_that_do_not_leave_are_not_sent_again(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1) as library:
        library.opener.stubborn.add("a")
        await library.use("a")
        await library.use("b")
        assert library.open_names == {"b"}
        assert library.opener.closes == [("a", True)]
        assert len(moves(library, "page out")) <= 2


async def test_pinned_models_keep_everything(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=2.5, park_idle_seconds=10) as library:
        library.opener.seconds["a"] = 30
        library.manager.pin("a", True)
        lease = await library.lease("a")
        await library.rest()
        library.opener.compute(lease.engine)  # type: ignore[arg-type]
        lease.release()
        for name in "bcbc":
            await library.use(name)
            await library.pass_time(20)
        status = library.status("a")
        assert (status.state, status.warm_share, status.second_bytes) == ("open", 1.0, 30)
        assert not [move for move in library.opener.moves if move[0] == "a" and move[1] != "bring back"]


async def test_a_model_that_does_not_fit_streams(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2) as library:
        library.opener.sizes["a"] = 400
        held = await library.lease("a")
        status = library.status("a")
        limit = 2 * ONE_MODEL - VOCABULARY_BYTES - CONTEXT_BYTES
        assert (status.state, status.resident_limit_bytes) == ("streaming", limit)
        assert library.used_bytes == library.opener.open_bytes == 2 * ONE_MODEL
        await library.manager.measure()
        assert library.status("a").warm_share == limit / 400
        held.release()
        await library.use("b")
        assert library.status("a").state == "streaming"
        assert library.used_bytes <= 2 * ONE_MODEL
        await library.use("a")
        assert library.opener.opens == {"a": 1, "b": 1}
        assert library.status("b").warm_share == 0.25


async def test_streaming_leaves_what_others_need_to_come_back(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=3) as library:
        library.opener.sizes["a"] = 1000
        await library.use("b")
        await library.use("c")
        await library.lease("a")
        assert [library.status(name).state for name in "bc"] == ["parked", "parked"]
        assert [library.status(name).warm_share for name in "bc"] == [0.25, 0.25]
        left = 2 * (25 + VOCABULARY_BYTES + COMPUTE_BYTES)
        limit = 3 * ONE_MODEL - left - VOCABULARY_BYTES - CONTEXT_BYTES
        assert library.status("a").resident_limit_bytes == limit


async def test_streaming_needs_a_layer(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2, text="[models.b]\npin = true") as library:
        library.opener.sizes["a"] = 1000
        library.opener.layers["a"] = 240
        with pytest.raises(InsufficientMemory) as caught:
            await library.lease("a")
        assert caught.value.needed_bytes == 240 + VOCABULARY_BYTES + CONTEXT_BYTES
        library.opener.layers["a"] = 150
        await library.use("a")
        await library.manager.unload("a")
        await library.use("b")
        with pytest.raises(AllPinned):
            await library.lease("a")


@pytest.mark.parametrize("budget", [100, 175, 185])
async def test_pages_that_do_not_leave_hold_no_request_up(open_library: OpenLibrary, budget: int) -> None:
    async with open_library("a", budget=10) as library:
        library.opener.seconds["a"] = 60
        library.opener.stubborn.add("a")
        lease = await library.lease("a")
        await library.rest()
        library.opener.compute(lease.engine)
        lease.release()
        await library.rest()
        config = library.catalog.config
        await library.manager.reconfigure(
            msgspec.structs.replace(config, memory=msgspec.structs.replace(config.memory, budget=budget))
        )
        await library.rest()
        request = library.request("a")
        await library.rest()
        await library.pass_time(1000)
        assert request.lease is not None
