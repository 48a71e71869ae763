"""Makes ``fakes`` importable from every test directory; the library's API over them; a disk and a store."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for later starts, packed weights and measurements, is kept for one run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands send the log to their terminal; in a test that ends with the test."""
    loggers = [logging.getLogger(name) for name in ("shardload", "uvicorn", "asyncio")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files can leave memory: ``/tmp`` is in memory itself on many systems."""
    for parent in (tmp_path, Path("/var/tmp"), Path(__file__).parents[1]):
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            continue
        with TemporaryDirectory(dir=parent, prefix="shardload-test-") as folder:
            if _can_be_dropped(Path(folder) / "probe"):
                yield Path(folder)
                return
    yield tmp_path


def _can_be_dropped(probe: Path) -> bool:
    from shardload.memory import drop_file_cache, file_resident_bytes

    with probe.open("wb") as file:
        file.write(os.urandom(2**16))
        file.flush()
        os.fsync(file.fileno())
    return not drop_file_cache(probe) or file_resident_bytes(probe) in (0, None)


@pytest.fixture
def work_path(tmp_path: Path) -> Path:
    """Where a test has its store and its models; `disk_path` in tests whose pages are to leave."""
    return tmp_path


@pytest.fixture
def pantry(work_path: Path) -> Iterator[Any]:
    """An empty store for packed weights."""
    from packable import open_pantry

    with open_pantry(work_path / "store") as pantry:
        yield pantry


@pytest.fixture
def fake_models() -> Iterator[Any]:
    """A `shardload.Manager` with a model and an embedding model, and the `FakeManager` behind it."""
    from service_fakes import FakeCatalog, FakeManager, make_entry

    import shardload
    from shardload.engine import Lane
    from shardload.runtime import Parts
    from shardload.service import Service

    small = make_entry("small")
    vectors = make_entry("vectors", kind="embed", capabilities=frozenset({"embedding"}))
    catalog = FakeCatalog([small, vectors])
    with Lane() as lane:
        manager = FakeManager(lane)

        @asynccontextmanager
        async def parts(config: shardload.Config) -> AsyncIterator[Any]:
            yield Parts(catalog, manager, Service(catalog, manager))  # type: ignore[arg-type]

        with shardload.Manager(assemble=parts) as models:
            yield models, manager
