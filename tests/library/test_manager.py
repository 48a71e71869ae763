from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fake_library import OpenLibrary, write_model
from fake_opener import ONE_MODEL, FakeClock, FakeOpener

from shardload.config import Config, parse_config
from shardload.errors import HandleClosed, LoadFailed, ModelNotFound, OpenFailed, ShuttingDown
from shardload.library.catalog import Catalog
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


async def test_unload_takes_pins_away(open_library: OpenLibrary) -> None:
    text = "[models.a]\npin = true\n[models.v]\nbase = 'a'\n[models.w]\nbase = 'a'\nctx = 64"
    async with open_library("ab", text=text) as library:
        for name in "vwb":
            library.manager.pin(name, True)
        await library.use("a")
        await library.use("w")
        assert await library.manager.unload("v") == ("a", "v")
        assert [library.status(name).pinned for name in "avwb"] == [False, False, True, True]
        assert library.open_names == {"w"}
        await library.manager.reconfigure(library.catalog.config)
        await library.use("a")
        await library.pass_time(1e6)
        assert library.open_names == {"w"}
        assert await library.manager.unload("a") == ()


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
        with pytest.raises(ModelNotFound):
            await library.manager.lease(entry)
        (library.folder / "b.gguf").unlink()
        with pytest.raises(OpenFailed, match="No such file"):
            await library.manager.lease(library.catalog.get("b"))


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
