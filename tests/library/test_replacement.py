from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from fake_library import Library, OpenLibrary, write_model
from fake_opener import ONE_MODEL

from shardload.config import MemoryConfig, parse_config
from shardload.errors import (
    ConfigError,
    InsufficientMemory,
    LoadFailed,
    ModelNotFound,
    OpenFailed,
    Overloaded,
    RequestError,
)

pytestmark = pytest.mark.anyio

Make = Callable[..., Path]


def path_of(lease: Any) -> Path:
    engine: Any = lease.engine
    path: Path = engine.path
    return path


async def test_swap(open_library: OpenLibrary) -> None:
    async with open_library("ab", text="[models.v]\nbase = 'a'") as library:
        old = await library.lease("a")
        await library.manager.swap("a", library.folder / "b.gguf")
        new, virtual = await library.lease("a"), await library.lease("v")
        assert (path_of(old).name, path_of(new).name, path_of(virtual).name) == ("a.gguf", "b.gguf", "b.gguf")
        engine: Any = old.engine
        assert not engine.closed
        old.release()
        await library.rest()
        assert engine.closed
        assert library.opener.closes == [("a", True)]


async def test_requests_wait_for_the_new_file(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        running = await library.lease("a")
        go_on = library.opener.hold("b")
        library.tasks.start_soon(library.manager.swap, "a", library.folder / "b.gguf")
        await until(library, lambda: library.opener.opens["b"] == 1)
        late = library.request("a")
        await library.rest()
        assert late.waits
        go_on()
        await library.rest()
        assert late.lease is not None
        assert path_of(late.lease).name == "b.gguf"
        assert path_of(running).name == "a.gguf"


async def until(library: Library, condition: Callable[[], bool]) -> None:
    """Wait for what a thread takes part in."""
    with anyio.fail_after(30):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_swap_to_a_file_that_does_not_open(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        await library.use("a")
        library.opener.failures["b"] = LoadFailed("b.gguf", "bad tensor")
        with pytest.raises(OpenFailed, match="bad tensor"):
            await library.manager.swap("a", library.folder / "b.gguf")
        (library.folder / "c.gguf").write_bytes(b"nonsense")
        with pytest.raises(OpenFailed, match="is no GGUF file"):
            await library.manager.swap("a", library.folder / "c.gguf")
        with pytest.raises(OpenFailed, match="no such file"):
            await library.manager.swap("a", library.folder / "missing.gguf")
        with pytest.raises(RequestError, match="outside the served folders"):
            await library.manager.swap("a", Path("/etc/passwd"))
        with pytest.raises(ModelNotFound):
            await library.manager.swap("x", library.folder / "b.gguf")
        library.opener.sizes["b"] = 10**6
        with pytest.raises(InsufficientMemory):
            await library.manager.swap("a", library.folder / "b.gguf")
        lease = await library.lease("a")
        assert path_of(lease).name == "a.gguf"
        assert library.opener.opens["a"] == 1


async def test_a_new_file_that_did_not_open_beside_the_old_one_is_tried_when_that_has_gone(
    open_library: OpenLibrary,
) -> None:
    async with open_library("a") as library:
        await library.use("a")
        library.opener.failures["a"] = LoadFailed("a.gguf", "cannot allocate memory")
        write_model(library.folder / "new", llama__context_length=300)
        (library.folder / "new").replace(library.folder / "a.gguf")
        for _ in range(2):
            await library.use("a")
            assert library.opener.opens["a"] == 2, "tried once; the old one goes on"
        library.opener.failures.clear()
        await library.manager.unload("a")
        await library.use("a")
        assert library.opener.opens["a"] == 3


async def test_swap_where_both_do_not_fit(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1, text="[models.a]\npin = true") as library:
        running = await library.lease("a")
        swap = library.folder / "b.gguf"
        library.tasks.start_soon(library.manager.swap, "a", swap)
        await until(library, lambda: library.manager._replacements.is_replacing("a"))
        late = library.request("a")
        await library.rest()
        assert late.waits
        running.release()
        await until(library, lambda: not late.waits)
        assert late.lease is not None
        assert path_of(late.lease).name == "b.gguf"
        assert library.used_bytes == ONE_MODEL


async def test_two_swaps_of_one_name(open_library: OpenLibrary) -> None:
    async with open_library("abc") as library:
        await library.use("a")
        async with anyio.create_task_group() as tasks:
            for name in "bcb":
                tasks.start_soon(library.manager.swap, "a", library.folder / f"{name}.gguf")
        assert path_of(await library.lease("a")).name == "b.gguf"
        assert library.catalog.get("c").path.name == "c.gguf"


async def test_queue_at_the_gate_is_bounded(open_library: OpenLibrary) -> None:
    async with open_library("ab", queue_limit=1) as library:
        await library.use("a")
        go_on = library.opener.hold("b")
        library.tasks.start_soon(library.manager.swap, "a", library.folder / "b.gguf")
        await until(library, lambda: library.opener.opens["b"] == 1)
        first = library.request("a")
        await library.rest()
        with pytest.raises(Overloaded):
            await library.lease("a")
        go_on()
        await library.rest()
        assert first.lease is not None


async def test_file_replaced_on_disk(open_library: OpenLibrary) -> None:
    async with open_library("ab", text="[models.v]\nbase = 'a'") as library:
        old = await library.lease("a")
        write_model(library.folder / "new", llama__context_length=300)
        os.replace(library.folder / "new", library.folder / "a.gguf")
        new, virtual = await library.lease("v"), await library.lease("a")
        assert new.engine is virtual.engine
        assert new.engine is not old.engine
        assert new.ctx_tokens == 300
        assert library.opener.opens["a"] == 2
        old.release()
        await library.rest()
        assert len(library.opener.engines) == 1


async def test_file_replaced_by_one_that_is_no_model(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        await library.use("a")
        (library.folder / "new").write_bytes(b"nonsense")
        os.replace(library.folder / "new", library.folder / "a.gguf")
        lease = await library.lease("a")
        lease.release()
        again = await library.lease("a")
        assert again.engine is lease._instance.engine
        again.release()
        await library.manager.unload("a")
        with pytest.raises(OpenFailed, match="is no GGUF file"):
            await library.lease("a")
        write_model(library.folder / "a.gguf")
        await library.use("a")


async def test_file_replaced_by_one_that_does_not_open(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        lease = await library.lease("a")
        library.opener.failures["a"] = LoadFailed("a.gguf", "bad tensor")
        write_model(library.folder / "new")
        os.replace(library.folder / "new", library.folder / "a.gguf")
        for _ in range(3):
            assert (await library.lease("a")).engine is lease.engine
        assert library.opener.opens["a"] == 2


async def test_file_written_over_in_place(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        lease = await library.lease("a")
        write_model(library.folder / "b.gguf", llama__context_length=300)
        (library.folder / "a.gguf").write_bytes((library.folder / "b.gguf").read_bytes())
        new = await library.lease("a")
        assert new.engine is not lease.engine
        assert new.ctx_tokens == 300
        (library.folder / "a.gguf").write_bytes(b"nonsense")
        for _ in range(2):
            with pytest.raises(OpenFailed, match="is no GGUF file"):
                await library.lease("a")


async def test_file_deleted_while_open(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        await library.use("a")
        (library.folder / "a.gguf").unlink()
        await library.use("a")
        assert library.opener.opens["a"] == 1
        await library.manager.unload("a")
        with pytest.raises(ModelNotFound):
            await library.lease("a")
        await library.use("b")


async def test_a_waiter_that_leaves_during_a_replacement(open_library: OpenLibrary) -> None:
    async with open_library("a") as library:
        await library.use("a")
        go_on = library.opener.hold("a")
        write_model(library.folder / "new")
        os.replace(library.folder / "new", library.folder / "a.gguf")
        first = library.request("a")
        await until(library, lambda: library.opener.opens["a"] == 2)
        second = library.request("a")
        await library.rest()
        first.cancel()
        await library.rest()
        go_on()
        await until(library, lambda: not second.waits)
        assert second.lease is not None
        assert second.lease.entry.file_key == library.catalog.get("a").file_key


async def test_reconfigure(open_library: OpenLibrary) -> None:
    async with open_library("abc") as library:
        await library.use("a")
        await library.use("b")
        text = """
        engine.queue = 7
        engine.keep_alive = 9
        models.a = { file = "c.gguf", pin = true }
        models.b = { file = "b.gguf", ctx = 128 }
        """
        config = parse_config(text, library.folder / "x.toml")
        memory = MemoryConfig(budget=2 * ONE_MODEL)
        await library.manager.reconfigure(msgspec.structs.replace(config, memory=memory))
        await library.rest()
        assert library.catalog.names() == ("a", "b")
        assert library.open_names == {"a"}
        a, b = await library.lease("a"), await library.lease("b")
        assert (path_of(a).name, path_of(b).name, b.ctx_tokens) == ("c.gguf", "b.gguf", 128)
        assert library.manager.queue_limit == 7
        assert library.status("a").pinned
        b.release()
        assert library.status("b").expires_in_seconds == pytest.approx(9)
        await library.manager.reconfigure(parse_config("models.a.file = 'c.gguf'", library.folder / "x.toml"))
        assert not library.status("a").pinned
        with pytest.raises(ModelNotFound):
            library.catalog.get("b")


async def test_reconfigure_keeps_what_does_not_open(open_library: OpenLibrary) -> None:
    async with open_library("abc") as library:
        await library.use("a")
        library.opener.failures["c"] = LoadFailed("c.gguf", "bad tensor")
        text = "folders = ['.']\nmodels.a.file = 'c.gguf'\nmodels.v.base = 'a'"
        await library.manager.reconfigure(parse_config(text, library.folder / "x.toml"))
        assert path_of(await library.lease("a")).name == "a.gguf"
        assert path_of(await library.lease("v")).name == "a.gguf"
        assert library.opener.opens["a"] == 1


async def test_reconfigure_with_contradictions(open_library: OpenLibrary) -> None:
    async with open_library("abc") as library:
        await library.use("a")
        before = library.catalog.get("a")
        config = parse_config("folders = ['.']\nmodels.v.base = 'x'", library.folder / "x.toml")
        with pytest.raises(ConfigError):
            await library.manager.reconfigure(config)
        assert library.catalog.get("a") is before
        assert library.open_names == {"a"}


async def test_a_reconfiguration_that_fails_expects_nothing(open_library: OpenLibrary) -> None:
    async with open_library("abc", queue_limit=1, text="[engine]\nparallel = 1") as library:
        await library.use("a")
        go_on = library.opener.hold("c")
        waiting = [library.request("c") for _ in range(2)]
        await library.rest()
        text = "models.a.file = 'c.gguf'\nengine.parallel = 1"
        with pytest.raises(Overloaded):
            await library.manager.reconfigure(parse_config(text, library.folder / "x.toml"))
        assert not library.manager._replacements._coming
        assert path_of(await library.lease("a")).name == "a.gguf"
        go_on()
        await until(library, lambda: waiting[0].lease is not None)
        waiting[0].release()
