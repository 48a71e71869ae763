"""How long idle models stay, and in which state."""

from __future__ import annotations

import pytest
from fake_library import OpenLibrary, moves
from fake_opener import KV_BYTES, ONE_MODEL

from shardload.errors import ModelNotFound

pytestmark = pytest.mark.anyio


async def test_keep_alive(open_library: OpenLibrary) -> None:
    text = "[models.b]\nkeep_alive = 10\n[models.c]\nkeep_alive = -1"
    async with open_library("abc", text=text, keep_alive_seconds=60) as library:
        for name in "abc":
            await library.use(name)
        assert library.status("b").expires_in_seconds == pytest.approx(9)
        assert library.status("c").expires_in_seconds is None
        await library.pass_time(9)
        assert library.open_names == {"a", "c"}
        assert library.opener.closes == [("b", False)]
        await library.pass_time(60)
        assert library.names_in("open", "parked") == {"c"}
        await library.pass_time(1e6)
        assert library.names_in("parked") == {"c"}


async def test_keep_alive_of_a_request(open_library: OpenLibrary) -> None:
    async with open_library(keep_alive_seconds=60) as library:
        await library.use("a", keep_alive_seconds=5)
        await library.pass_time(4)
        held = await library.lease("a")
        assert library.status("a").expires_in_seconds is None
        await library.pass_time(100)
        assert library.open_names == {"a"}
        held.release()
        await library.pass_time(4)
        assert library.open_names == {"a"}
        await library.pass_time(1)
        assert library.open_names == set()
        await library.use("a", keep_alive_seconds=0)
        assert library.open_names == set()
        await library.use("a", keep_alive_seconds=-1)
        await library.use("a")
        await library.pass_time(1e6)
        assert library.names_in("parked") == {"a"}


async def test_pinned_models_do_not_expire(open_library: OpenLibrary) -> None:
    async with open_library(keep_alive_seconds=5) as library:
        await library.manager.load("a", pin=True)
        await library.pass_time(100)
        assert library.open_names == {"a"}
        library.manager.pin("a", False)
        await library.rest()
        assert library.open_names == set()
        with pytest.raises(ModelNotFound):
            library.manager.pin("nobody", True)


async def test_the_clock_closes_idle_models_by_itself(open_library: OpenLibrary) -> None:
    async with open_library(keep_alive_seconds=5) as library:
        await library.use("a")
        library.clock.now += 10
        library.manager._alarm._moved.set()
        await library.rest()
        assert library.open_names == set()


async def test_the_clock_rests_while_requests_wait_for_an_expired_model(open_library: OpenLibrary) -> None:
    async with open_library(budget=2.3, keep_alive_seconds=5) as library:
        library.opener.resident |= {"a": 0}
        await library.use("a")
        held = [await library.lease("b"), await library.lease("c")]
        waiting = library.request("a")
        await library.rest()
        await library.pass_time(6)
        assert waiting.waits
        assert library.manager._alarm.at > library.clock.now
        for lease in held:
            lease.release()
        await library.rest()
        waiting.release()


async def test_idle_contexts_are_parked(open_library: OpenLibrary) -> None:
    async with open_library("ab", park_idle_seconds=60, keep_alive_seconds=300) as library:
        library.manager.pin("b", True)
        await library.use("a")
        await library.use("b")
        await library.pass_time(60)
        assert (library.status("a").state, library.status("b").state) == ("parked", "open")
        assert library.used_bytes == library.opener.open_bytes == 2 * ONE_MODEL - KV_BYTES
        held = await library.lease("a")
        assert (library.status("a").state, library.used_bytes) == ("open", 2 * ONE_MODEL)
        held.release()
        assert library.opener.opens["a"] == 1
        assert moves(library, "park") == [("a", "park")]


async def test_a_request_in_the_middle_of_parking_takes_its_memory_again(open_library: OpenLibrary) -> None:
    async with open_library("a", park_idle_seconds=60) as library:
        await library.use("a")
        go_on = library.opener.hold_move("a")
        await library.pass_time(60)
        held = await library.lease("a")
        go_on()
        await library.rest()
        assert (library.status("a").state, library.used_bytes) == ("open", ONE_MODEL)
        held.release()


async def test_a_context_that_cannot_be_parked_is_left_alone(open_library: OpenLibrary) -> None:
    async with open_library("a", park_idle_seconds=60, keep_alive_seconds=-1) as library:
        library.opener.stubborn.add("a")
        await library.use("a")
        for _ in range(5):
            await library.pass_time(100)
        assert library.status("a").state == "open"
        assert len(moves(library, "park")) == 1
        await library.use("a")
        await library.pass_time(100)
        assert len(moves(library, "park")) == 2


async def test_parking_can_wait_for_need(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1.39, park_idle_seconds=-1) as library:
        await library.use("a")
        await library.pass_time(1000)
        await library.use("a")
        assert not moves(library, "park")
        await library.use("b")
        assert moves(library, "park")


async def test_weights_outlive_their_context(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1.3, keep_alive_seconds=50) as library:
        await library.use("a")
        await library.use("b")
        status = library.status("a")
        assert (status.state, status.leases, status.expires_in_seconds) == ("parked", 0, pytest.approx(49))
        assert library.opener.opens == {"a": 1, "b": 1}
        assert [engine.path.stem for engine in library.opener.engines] == ["b"]
        await library.pass_time(49)
        assert library.status("a").state == "closed"
        assert library.opener.closes == [("a", False)]
        await library.use("a")
        await library.use("b")
        assert library.status("a").state == "parked"
        await library.manager.unload("a")
        assert library.status("a").state == "closed"
        assert library.opener.closes[-1] == ("a", True)
