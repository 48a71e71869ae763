"""Parts that a configuration asks for and that outlive any one model: the store's, and the parked ones'."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.config import Config, EngineConfig, StoreConfig
from shardload.engine.parking import ParkingLot
from shardload.errors import NativeError
from shardload.memory import process_memory
from shardload.memory.pressure import PressureWatch

if TYPE_CHECKING:
    from shardload.library.llama_paging import LlamaPaging
    from shardload.llama.layout_choice import LayoutChoice
    from shardload.shards.pantry import Pantry
    from shardload.shards.store import Store

logger = logging.getLogger("shardload.library")


@contextmanager
def paging_of(config: Config, is_busy: Callable[[], bool]) -> Iterator[LlamaPaging]:
    """What minds the pages of a configuration's models; ``is_busy`` tells whether anything is computed."""
    from shardload.library.llama_paging import LlamaPaging

    with ExitStack() as stack:
        pantry = pantry_of(config.store)
        if pantry is not None:
            stack.enter_context(closing(pantry))
        try:
            choice = layout_choice(config.engine)
        except (OSError, NativeError) as error:
            logger.warning("weights are read in one order only: %s", error)
            choice = None
        yield stack.enter_context(closing(LlamaPaging(pantry, choice, is_busy)))


@contextmanager
def parking_of(config: Config) -> Iterator[ParkingLot]:
    """Where conversations wait, in memory and in files."""
    from shardload.shards.store import default_directory

    settings = config.parking
    folder = Path(settings.directory) if settings.directory else default_directory().with_name("parked")
    with closing(ParkingLot(folder if settings.disk else None, settings.memory, settings.disk)) as lot:
        yield lot


@contextmanager
def relieved_by(relieve: Callable[[int], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Have memory given back, on the running event loop, when others on the machine or in a group want it."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def guarded(missing_bytes: int) -> None:
        try:
            await relieve(missing_bytes)
        except Exception:
            logger.exception("giving memory back under pressure failed")

    def begin(missing_bytes: int) -> None:
        task = loop.create_task(guarded(missing_bytes))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_pressure(missing_bytes: int) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it what could be given back
            loop.call_soon_threadsafe(begin, missing_bytes)

    with closing(PressureWatch(on_pressure, cached_bytes=lambda: process_memory().file_bytes)):
        yield


def store_of(settings: StoreConfig) -> Store | None:
    """The configured store; None where it is off."""
    from shardload.shards.store import Store, default_directory

    if not settings.enabled:
        return None
    folder = Path(settings.directory) if settings.directory else default_directory()
    return Store(folder, settings.limit)


def pantry_of(settings: StoreConfig) -> Pantry | None:
    """The configured store for the llama.cpp that is installed; None where it is off or cannot be used."""
    from shardload.shards.pantry import Pantry, packing_build

    try:
        store = store_of(settings)
        return Pantry(store, packing_build()) if store is not None else None
    except (OSError, NativeError) as error:
        logger.warning("packed weights are not kept: %s", error)
        return None


def layout_choice(settings: EngineConfig) -> LayoutChoice:
    """What is known of the two orders of bytes on this machine."""
    from shardload.library.llama_opener import available_cores
    from shardload.llama.layout_choice import LayoutChoice, default_path
    from shardload.shards.pantry import packing_build

    return LayoutChoice(default_path(), packing_build(), settings.threads or available_cores())
