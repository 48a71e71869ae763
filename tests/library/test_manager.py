from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fake_library import COMPUTE_BYTES, ONE_MODEL, FakeClock, FakeOpener, OpenLibrary, write_model

from shardload.config import Config, parse_config
from shardload.errors import (
    AllPinned,
    HandleClosed,
    InsufficientMemory,
    LoadFailed,
    ModelNotFound,
    OpenFailed,
    Overloaded,
    ShuttingDown,
)
from shardload.library.catalog import Catalog
from shardload.library.lease import OpenProgress
from shardload.library.manager import Manager

pytestmark = pytest.mark.anyio


async def test_opens_on_demand(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        assert library.status("a").state == "closed"
        with await library.lease("a") as lease:
            engine: Any = lease.engine
            assert engine.path == library.folder / "a.gguf"
            assert (lease.entry.name, lease.ctx_tokens, lease.bos, lease.eos) == (
                "a",
                512,
                "<begin>",
                "<end>",
            )
            status = library.status("a")
            assert (status.state, status.leases, status.opens) == ("open", 1, 1)
            assert library.status("b").state == "closed"
        assert library.status("a").leases == 0
        with pytest.raises(HandleClosed):
            _ = lease.engine
        lease.release()
        assert library.status("a").leases == 0


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


async def test_closed_models_tell_what_the_system_holds_of_them(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        library.opener.cached |= {"a": 60, "b": None}
        await library.rest()
        assert (library.status("a").resident_bytes, library.status("b").resident_bytes) == (60, None)
        library.opener.cached["a"] = 0
        await library.rest()
        assert library.status("a").resident_bytes == 60
        await library.pass_time(1000)
        library.status("a")
        await library.rest()
        assert library.status("a").resident_bytes == 0
        library.opener.cached["a"] = 80
        await library.manager.measure()
        assert library.status("a").resident_bytes == 80
        await library.use("a")
        assert library.status("a").resident_bytes == 100
        await library.manager.close()
        assert library.status("a").resident_bytes == 80


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


async def test_failed_open_is_told_to_all_and_tried_again(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        await library.use("b")
        library.opener.failures["a"] = LoadFailed("a.gguf", "unknown architecture")
        go_on = library.opener.hold("a")
        requests = [library.request("a") for _ in range(3)]
        await library.rest()
        go_on()
        await library.rest()
        for request in requests:
            assert isinstance(request.error, OpenFailed)
            assert request.error.reason == "unknown architecture"
        assert len({id(request.error) for request in requests}) == 3
        status = library.status("a")
        assert (status.state, status.failed_opens, status.error) == ("failed", 1, "unknown architecture")
        assert library.status("b").state == "open"
        assert library.used_bytes == ONE_MODEL
        del library.opener.failures["a"]
        await library.use("a")
        assert (library.status("a").state, library.status("a").error) == ("open", None)


async def test_failed_context_closes_the_weights(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        library.opener.context_failures["a"] = LoadFailed("context", "no memory")
        with pytest.raises(OpenFailed, match="no memory"):
            await library.lease("a")
        await library.rest()
        assert library.used_bytes == 0
        assert not library.opener.models


async def test_an_opener_that_breaks_is_a_failed_open(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        library.opener.failures["a"] = ZeroDivisionError("oops")
        with pytest.raises(OpenFailed, match="oops"):
            await library.lease("a")
        await library.use("b")


async def test_names_and_sizes_share_weights(open_library: OpenLibrary) -> None:
    text = """
    [models.v]
    base = "a"
    [models.wide]
    base = "a"
    ctx = 1024
    [models.twin]
    file = "a.gguf"
    """
    async with open_library("a", text=text) as library:
        leases = [await library.lease(name) for name in ("a", "v", "twin", "wide")]
        embedding = await library.lease("a", "embed")
        assert library.opener.opens == {"a": 1}
        engines = [lease.engine for lease in leases]
        assert engines[0] is engines[1] is engines[2]
        assert engines[3] is not engines[0]
        assert embedding.engine not in engines
        assert [lease.ctx_tokens for lease in leases] == [512, 512, 512, 1024]
        assert library.used_bytes == 110 + 3 * 20


async def test_second_context_waits_for_the_weights(open_library: OpenLibrary) -> None:
    async with open_library("a", text="[models.wide]\nbase = 'a'\nctx = 1024") as library:
        go_on = library.opener.hold("a")
        requests = [library.request("a"), library.request("wide")]
        await library.rest()
        library.opener.failures["a"] = LoadFailed("a", "broken")
        go_on()
        await library.rest()
        assert all(isinstance(request.error, OpenFailed) for request in requests)
        del library.opener.failures["a"]
        requests = [library.request("a"), library.request("wide")]
        await library.rest()
        assert all(request.lease for request in requests)
        assert library.opener.opens == {"a": 2}


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


async def test_seeded_texts_have_a_context_of_their_own(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        ordinary, seeded = await library.lease("a"), await library.lease("a", "seeded")
        assert library.opener.opens == {"a": 1}
        assert ordinary.engine is not seeded.engine
        assert (await library.lease("a", "seeded")).engine is seeded.engine
        status = library.status("a")
        assert (status.kv_bytes, status.private_bytes, status.leases) == (30, 50, 3)
        library.leases[-1].release()
        library.manager.pin("a", True)
        for lease in (ordinary, seeded):
            lease.release()
        await library.pass_time(301)
        assert len(library.opener.engines) == 2
        await library.manager.unload("a")
        assert not library.opener.engines


async def test_a_seeded_context_expires(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        await library.use("a", kind="seeded")
        held = await library.lease("a")
        await library.pass_time(301)
        assert [engine.kind for engine in library.opener.engines] == ["generate"]
        held.release()


async def test_a_seeded_context_never_takes_the_place_of_the_ordinary_one(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1.1) as library:
        seeded = await library.lease("a", "seeded")
        assert [engine.kind for engine in library.opener.engines] == ["generate"]
        assert (await library.lease("a")).engine is seeded.engine
    async with open_library("ab", budget=2.1) as library:
        await library.use("b")
        await library.lease("a")
        await library.lease("a", "seeded")
        assert library.status("b").warm_share == 0.93
        kinds = [engine.kind for engine in library.opener.engines if engine.path.stem == "a"]
        assert sorted(kinds) == ["generate", "seeded"]
        library.leases[-1].release()
    async with open_library("ab", budget=2.1) as library:
        await library.lease("b")
        ordinary = await library.lease("a")
        assert (await library.lease("a", "seeded")).engine is ordinary.engine


async def test_the_queue_of_a_seeded_context(open_library: OpenLibrary) -> None:
    async with open_library(queue_limit=2) as library:
        for _ in range(3):
            await library.lease("a", "seeded")
        with pytest.raises(Overloaded):
            await library.lease("a", "seeded")
        await library.lease("a")


async def test_open_that_took_more_than_predicted_is_corrected(open_library: OpenLibrary) -> None:
    async with open_library(budget=3) as library:
        for name in "ab":
            await library.use(name)
        library.opener.extra_private_bytes = 200
        await library.use("c")
        assert "c" in library.open_names
        assert "a" not in library.open_names
        assert library.used_bytes <= 3 * ONE_MODEL + 200


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


async def test_a_model_that_lost_its_name_while_it_was_loaded(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        refused: list[ModelNotFound] = []

        async def load() -> None:
            with pytest.raises(ModelNotFound) as caught:
                await library.manager.load("a", pin=True)
            refused.append(caught.value)

        go_on = library.opener.hold("a")
        library.tasks.start_soon(load)
        await library.rest()
        await library.manager.reconfigure(parse_config("models.b.file = 'b.gguf'", library.folder / "x.toml"))
        go_on()
        await library.rest()
        assert refused
        assert not library.opener.engines


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


async def test_unload(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        await library.manager.unload("a")
        await library.use("a")
        await library.manager.unload("a")
        assert library.open_names == set()
        assert library.opener.closes == [("a", True)]
        held = await library.lease("a")
        done: list[str] = []

        async def unload() -> None:
            await library.manager.unload("a")
            done.append("a")

        library.tasks.start_soon(unload)
        await library.rest()
        late = library.request("a")
        await library.rest()
        assert not done
        assert late.waits
        held.release()
        await library.rest()
        assert done == ["a"]
        assert late.lease is not None
        assert library.opener.opens["a"] == 3


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


async def test_preload_and_close(open_library: OpenLibrary, tmp_path: Path) -> None:
    async with open_library("ab", text="[models.a]\npreload = true") as library:
        await library.rest()
        assert library.open_names == {"a"}
        held = await library.lease("b")
        go_on = library.opener.hold("c")
        go_on()
        library.tasks.start_soon(library.manager.close, 1000.0)
        await library.rest()
        assert library.status("b").state == "open"
        with pytest.raises(ShuttingDown):
            await library.lease("b")
        held.release()
        await library.rest()
        assert library.open_names == set()


async def test_close_does_not_wait_for_ever(open_library: OpenLibrary) -> None:
    async with open_library(budget=2) as library:
        held, waiting = await library.lease("a"), None
        library.opener.hold("b")
        opening = library.request("b")
        waiting = library.request("c")
        await library.rest()
        await library.manager.close()
        await library.rest()
        for request in (opening, waiting):
            assert isinstance(request.error, ShuttingDown)
        assert not library.opener.engines
        held.release()


async def test_errors_of_unknown_models(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        entry = library.catalog.get("a")
        (library.folder / "a.gguf").unlink()
        with pytest.raises(OpenFailed, match="No such file"):
            await library.manager.lease(entry)
        library.catalog.rescan()
        with pytest.raises(ModelNotFound):
            await library.manager.lease(entry)


async def test_errors_of_the_body_come_out_as_they_are(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf")
    catalog = Catalog(Config(folders=(str(tmp_path),)))
    opener = FakeOpener(FakeClock())
    manager = Manager(catalog, opener, budget_bytes=lambda: 1000)
    with pytest.raises(ShuttingDown):
        await manager.lease(catalog.get("a"))

    async def fail() -> None:
        async with manager:
            (await manager.lease(catalog.get("a"))).release()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not opener.models
    with pytest.raises(ShuttingDown):
        await manager.load("a")


async def test_cancelling_the_owner_closes_everything(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf")
    catalog = Catalog(Config(folders=(str(tmp_path),)))
    opener = FakeOpener(FakeClock())
    with anyio.CancelScope() as scope:
        async with Manager(catalog, opener, budget_bytes=1000) as manager:
            lease = await manager.lease(catalog.get("a"))
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not opener.models
    lease.release()


@pytest.mark.parametrize("during", ["", "open", "close"])
async def test_a_loop_that_ends_closes_everything(tmp_path: Path, during: str) -> None:
    """As asyncio.run does it: every task is cancelled, and then the loop runs until all are done."""
    write_model(tmp_path / "a.gguf")
    opener = FakeOpener(FakeClock())
    ready = anyio.Event()

    async def own() -> None:
        catalog = Catalog(Config(folders=(str(tmp_path),)))
        async with Manager(catalog, opener, budget_bytes=1000) as manager:
            if during == "open":
                opener.hold("a")
                requests.append(asyncio.create_task(manager.load("a")))
            else:
                await manager.load("a")
            if during == "close":
                opener.hold_close("a")
                requests.append(asyncio.create_task(manager.unload("a")))
            ready.set()
            await anyio.sleep_forever()

    requests: list[asyncio.Task[None]] = []
    before = asyncio.all_tasks()
    owner = asyncio.create_task(own())
    await ready.wait()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    for _ in range(200):
        await anyio.lowlevel.checkpoint()
    assert owner.done()
    assert owner.cancelled()
    assert all(request.done() for request in requests)
    assert not opener.models


async def test_forgotten_leases_are_warned_of(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        lease = await library.manager.lease(library.catalog.get("a"))
        with pytest.warns(ResourceWarning, match="never released"):
            del lease
