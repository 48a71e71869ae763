from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from fake_library import Library, OpenLibrary, write_model

from shardload.errors import ConfigError, ModelNotFound, OpenFailed
from shardload.library import catalog as catalogs
from shardload.library import lookout
from shardload.library.catalog import Catalog
from shardload.library.lookout import REST_SECONDS

pytestmark = pytest.mark.anyio

LATER = REST_SECONDS + 0.001


async def look(library: Library) -> tuple[str, ...]:
    """What is served after a look that is due."""
    library.clock.now += LATER
    await library.manager.look_again()
    await library.rest()
    return library.catalog.names()


def called(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """What a module's function of one argument is called with from now on."""
    found: list[Any] = []
    real = getattr(module, name)

    def call(argument: Any) -> Any:
        found.append(argument)
        return real(argument)

    monkeypatch.setattr(module, name, call)
    return found


async def test_files_come_and_go(open_library: OpenLibrary, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shardload.library")
    async with open_library("ab") as library:
        write_model(library.folder / "c.gguf")
        (library.folder / "b.gguf").unlink()
        assert await look(library) == ("a", "c")
        told = [record.message for record in caplog.records if record.name == "shardload.library"]
        assert told == ["new models: c", "models that left with their files: b"]
        await library.use("c")
        with pytest.raises(ModelNotFound):
            library.catalog.get("b")


async def test_a_look_is_good_for_a_while(open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_library("a") as library:
        looks = called(monkeypatch, lookout, "survey")
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(library.manager.look_again)
        assert len(looks) == 1
        write_model(library.folder / "b.gguf")
        library.clock.now += REST_SECONDS - 0.001
        await library.manager.look_again()
        assert library.catalog.names() == ("a",)
        assert await look(library) == ("a", "b")
        assert len(looks) == 2
        version = library.catalog.version
        await library.manager.look_again(at_once=True)
        assert len(looks) == 3
        assert library.catalog.version > version


async def test_a_slow_look_is_good_for_longer(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("a") as library:
        real = lookout.survey

        def slow(config: Any) -> Any:
            library.clock.now += 5.0
            return real(config)

        monkeypatch.setattr(lookout, "survey", slow)
        await look(library)
        monkeypatch.setattr(lookout, "survey", real)
        write_model(library.folder / "b.gguf")
        library.clock.now += 40.0
        assert await look(library) == ("a",)
        library.clock.now += 10.0
        assert await look(library) == ("a", "b")


async def test_nothing_is_read_where_nothing_changed(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("ab") as library:
        await look(library)
        version, read = library.catalog.version, called(monkeypatch, catalogs, "read_facts")
        await look(library)
        assert library.catalog.version == version
        write_model(library.folder / "c.gguf")
        await look(library)
        assert read == [library.folder / "c.gguf"]


async def test_a_file_that_is_being_copied(
    open_library: OpenLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_library("a") as library:
        whole = (library.folder / "a.gguf").read_bytes()
        for count in (0, 10, len(whole) // 2, len(whole) - 1):
            (library.folder / "b.gguf").write_bytes(whole[:count])
            assert await look(library) == ("a",)
            with pytest.raises(OpenFailed):
                library.catalog.get("b")
        assert len([record for record in caplog.records if "cannot serve b" in record.message]) == 1
        (library.folder / "b.gguf").write_bytes(whole)
        assert await look(library) == ("a", "b")
        await library.use("b")


async def test_an_open_model_stays_without_its_file(open_library: OpenLibrary) -> None:
    async with open_library("ab", text="[models.v]\nbase = 'a'") as library:
        await library.use("a")
        (library.folder / "a.gguf").unlink()
        assert await look(library) == ("a", "b", "v")
        await library.use("v")
        assert library.opener.opens["a"] == 1
        await library.manager.unload("a")
        assert await look(library) == ("b",)
        with pytest.raises(OpenFailed, match="no such file"):
            library.catalog.get("v")
        write_model(library.folder / "a.gguf")
        assert await look(library) == ("a", "b", "v")


async def test_an_open_model_whose_file_changed_is_moved_by_a_request(open_library: OpenLibrary) -> None:
    async with open_library("ab") as library:
        old = await library.lease("a")
        for name in "ab":
            write_model(library.folder / "new", llama__context_length=300)
            os.replace(library.folder / "new", library.folder / f"{name}.gguf")
        await look(library)
        assert library.catalog.get("b").context_length == 300
        assert library.catalog.get("a") == old.entry
        assert library.opener.opens["a"] == 1
        assert (await library.lease("a")).ctx_tokens == 300


async def test_a_name_that_was_given_another_file_meanwhile(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("ab") as library:
        real = lookout.survey

        def meanwhile(config: Any) -> Any:
            found = real(config)
            library.catalog.replace("a", library.folder / "b.gguf")
            return found

        monkeypatch.setattr(lookout, "survey", meanwhile)
        write_model(library.folder / "c.gguf")
        assert await look(library) == ("a", "b")
        monkeypatch.setattr(lookout, "survey", real)
        assert await look(library) == ("a", "b", "c")
        assert library.catalog.get("a").path.name == "b.gguf"


async def test_a_configuration_that_was_taken_over_meanwhile(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("ab") as library:
        held, real = await library.lease("a"), lookout.survey
        old = Catalog(library.catalog.config)
        write_model(library.folder / "c.gguf")
        assert await look(library) == ("a", "b", "c")
        # One that was read before the file came.
        library.catalog.adopt(old)
        assert library.catalog.names() == ("a", "b")
        assert await look(library) == ("a", "b", "c")

        def meanwhile(config: Any) -> Any:
            found = real(config)
            library.catalog.adopt(
                Catalog(msgspec.structs.replace(config, folders=(), files=(str(library.folder / "b.gguf"),)))
            )
            return found

        monkeypatch.setattr(lookout, "survey", meanwhile)
        assert await look(library) == ("b",)
        held.release()


async def test_a_folder_that_is_gone_changes_nothing(
    open_library: OpenLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_library("a") as library:
        await look(library)
        gone = library.folder.with_name("gone")
        library.folder.rename(gone)
        for _ in range(3):
            assert await look(library) == ("a",)
        gone.rename(library.folder)
        write_model(library.folder / "b.gguf")
        assert await look(library) == ("a", "b")
    assert len([record for record in caplog.records if "stay as they were" in record.message]) == 1


async def test_a_new_file_that_contradicts_the_configuration_is_told_once(
    open_library: OpenLibrary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def contradict(_: Any, held: Any) -> Any:
        tries.append(held)
        raise ConfigError("a circle")

    async with open_library("a") as library:
        monkeypatch.setattr(catalogs.Catalog, "rescanned", contradict)
        for _ in range(3):
            assert await look(library) == ("a",)
    assert len(tries) == 1
    assert [record.message for record in caplog.records] == ["the models stay as they were: a circle"]


async def test_a_pin_of_the_configuration_waits_for_the_file(
    open_library: OpenLibrary, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not yet")
    async with open_library("b", text="[models.a]\npin = true") as library:
        write_model(library.folder / "a.gguf")
        assert await look(library) == ("a", "b")
        assert library.status("a").pinned
