from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shardload import assembly
from shardload.assembly import layout_choice, paging_of, pantry_of, parking_of, relieved_by, store_of
from shardload.config import Config, EngineConfig, ParkingConfig, StoreConfig
from shardload.errors import UnsupportedLlama
from shardload.shards.store import default_directory


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def never() -> bool:
    return False


def test_the_store_is_in_the_users_cache_unless_told_otherwise(tmp_path: Path) -> None:
    store = store_of(StoreConfig())
    assert store is not None
    assert store.directory == default_directory() == tmp_path / "cache" / "shardload" / "store"
    assert store.limit_bytes == 20 * 2**30
    store = store_of(StoreConfig(directory=str(tmp_path / "elsewhere"), limit=5))
    assert store is not None
    assert (store.directory, store.limit_bytes) == (tmp_path / "elsewhere", 5)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_store_that_is_off() -> None:
    assert store_of(StoreConfig(enabled=False)) is None
    assert pantry_of(StoreConfig(enabled=False)) is None
    with paging_of(Config(store=StoreConfig(enabled=False)), never) as paging:
        assert paging.pantry is None


def test_the_pantry_is_for_the_llama_that_is_installed(tmp_path: Path) -> None:
    from shardload_native.build import packing_build

    pantry = pantry_of(StoreConfig(directory=str(tmp_path / "store")))
    assert pantry is not None
    assert pantry.build == packing_build()
    pantry.close()


@pytest.mark.parametrize("error", [OSError("no libraries"), UnsupportedLlama("too old")])
def test_without_a_llama_there_is_no_pantry(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr("shardload.shards.pantry.packing_build", fail)
    assert pantry_of(StoreConfig()) is None
    with paging_of(Config(), never) as paging:
        assert paging.pantry is None
    assert "not kept" in caplog.text


def test_paging_ends_what_it_began(tmp_path: Path) -> None:
    from shardload.errors import HandleClosed

    config = Config(store=StoreConfig(directory=str(tmp_path / "store")))
    with paging_of(config, never) as paging:
        pantry = paging.pantry
        assert pantry is not None
        hold = pantry.hold()
        hold.add(["a" * 64])
        assert list((tmp_path / "store" / "holds").iterdir())
    assert not list((tmp_path / "store" / "holds").iterdir())
    with pytest.raises(HandleClosed):
        paging._prefetcher.bring([], name="late")
    with pytest.raises(KeyError), paging_of(config, never):
        raise KeyError


def test_choices_are_for_the_threads_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardload.library.llama_opener.available_cores", lambda: 7)
    assert layout_choice(EngineConfig())._threads == 7
    assert layout_choice(EngineConfig(threads=3))._threads == 3


@pytest.mark.parametrize("disk", [0, 100])
def test_conversations_wait_beside_the_store(tmp_path: Path, disk: int) -> None:
    with parking_of(Config(parking=ParkingConfig(disk=disk))) as lot:
        assert lot.memory_bytes == 0
    with parking_of(Config(parking=ParkingConfig(directory=str(tmp_path / "parked")))) as lot:
        assert lot.memory_bytes == 0


class Watch:
    """Feels pressure when a test says so."""

    made: Watch

    def __init__(self, on_pressure: Callable[[int], None], *, cached_bytes: Callable[[], int]) -> None:
        Watch.made = self
        self.press, self.cached_bytes = on_pressure, cached_bytes
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def press_elsewhere(self, missing_bytes: int) -> None:
        thread = threading.Thread(target=self.press, args=(missing_bytes,))
        thread.start()
        thread.join()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> type[Watch]:
    monkeypatch.setattr(assembly, "PressureWatch", Watch)
    return Watch


def test_pressure_is_told_on_the_event_loop(watch: type[Watch]) -> None:
    told: list[tuple[int, int]] = []

    async def serve() -> None:
        both = asyncio.Event()

        async def relieve(missing_bytes: int) -> None:
            told.append((missing_bytes, threading.get_ident()))
            if len(told) == 2:
                both.set()

        with relieved_by(relieve):
            assert watch.made.cached_bytes() >= 0
            for missing_bytes in (5, 6):
                watch.made.press_elsewhere(missing_bytes)
            await both.wait()
            assert not watch.made.closed
        assert watch.made.closed

    asyncio.run(serve())
    assert told == [(5, threading.get_ident()), (6, threading.get_ident())]
    watch.made.press_elsewhere(7)


def test_relief_that_fails_is_told(watch: type[Watch], caplog: pytest.LogCaptureFixture) -> None:
    async def serve() -> None:
        failed = asyncio.Event()

        async def relieve(missing_bytes: int) -> None:
            failed.set()
            raise RuntimeError("nothing to give")

        with relieved_by(relieve):
            watch.made.press_elsewhere(5)
            await failed.wait()

    asyncio.run(serve())
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == ["giving memory back under pressure failed"]
