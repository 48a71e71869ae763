"""Leases, and the queue before a model."""

from __future__ import annotations

import pytest
from fake_library import OpenLibrary

from shardload.errors import Overloaded
from shardload.library.lease import OpenProgress

pytestmark = pytest.mark.anyio


async def test_one_open_for_many_waiters(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        go_on = library.opener.hold("a")
        requests = [library.request("a") for _ in range(5)]
        await library.rest()
        assert all(request.waits for request in requests)
        assert (library.status("a").state, library.status("a").queued) == ("opening", 5 - 0)
        go_on()
        await library.rest()
        assert library.opener.opens == {"a": 1}
        assert library.status("a").leases == 5


async def test_a_waiter_that_leaves_does_not_cancel_the_open(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        go_on = library.opener.hold("a")
        first, second = library.request("a"), library.request("a")
        await library.rest()
        first.cancel()
        await library.rest()
        go_on()
        await library.rest()
        assert second.lease is not None
        assert library.status("a").leases == 1


async def test_an_open_that_nobody_waits_for_stays_idle(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        go_on = library.opener.hold("a")
        request = library.request("a")
        await library.rest()
        request.cancel()
        await library.rest()
        go_on()
        await library.rest()
        assert (library.status("a").state, library.status("a").leases) == ("open", 0)


async def test_progress(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        seen: list[OpenProgress] = []
        go_on = library.opener.hold("a")
        request = library.request("a", progress=seen.append)
        await library.rest()
        go_on()
        await library.rest()
        assert request.lease is not None
        assert seen == [OpenProgress("a", "opening", 0.0), OpenProgress("a", "opening", 0.5)]


async def test_full_queue(open_library: OpenLibrary) -> None:
    async with open_library("ab", queue_limit=2, text="[engine]\nparallel = 1") as library:
        held = [await library.lease("a") for _ in range(3)]
        with pytest.raises(Overloaded) as caught:
            await library.lease("a")
        assert (caught.value.name, caught.value.waiting) == ("a", 2)
        assert 1 <= caught.value.retry_after_seconds <= 60
        await library.use("b")
        held[0].release()
        held[1] = await library.lease("a")


async def test_full_queue_before_the_open(open_library: OpenLibrary) -> None:
    async with open_library("a", queue_limit=2, text="[engine]\nparallel = 1") as library:
        go_on = library.opener.hold("a")
        requests = [library.request("a") for _ in range(4)]
        await library.rest()
        assert [isinstance(request.error, Overloaded) for request in requests] == [False, False, False, True]
        go_on()


async def test_forgotten_leases_are_warned_of(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        lease = await library.manager.lease(library.catalog.get("a"))
        with pytest.warns(ResourceWarning, match="never released"):
            del lease
