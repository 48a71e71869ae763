from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_library import Library, OpenLibrary, write_model
from fake_opener import ONE_MODEL, FakeClock, FakeOpener

from shardload.config import parse_config
from shardload.library.catalog import Catalog
from shardload.library.manager import Manager


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model file at a path relative to ``tmp_path``."""

    def make(name: str, **values: Any) -> Path:
        return write_model(tmp_path / name, **values)

    return make


@pytest.fixture
def open_library(tmp_path: Path) -> OpenLibrary:
    """Open a manager over models of one size each; ``budget`` counts such models unless it is large."""

    @asynccontextmanager
    async def open_it(
        names: str = "abc",
        *,
        budget: float = 10,
        text: str = "",
        opener: Callable[..., Any] = FakeOpener,
        **options: Any,
    ) -> AsyncIterator[Library]:
        for name in names.split() if " " in names else names:
            write_model(tmp_path / f"{name}.gguf")
        catalog = Catalog.from_config(parse_config(f"folders = ['.']\n{text}", tmp_path / "x.toml"))
        clock = FakeClock()
        fake = FakeOpener(clock)
        budget_bytes = int(budget * ONE_MODEL)
        async with anyio.create_task_group() as tasks:
            manager = Manager(catalog, fake, budget_bytes=budget_bytes, clock=clock, **options)
            async with manager:
                library = Library(tmp_path, catalog, manager, fake, clock, tasks)
                try:
                    yield library
                finally:
                    for lease in library.leases:
                        lease.release()
            assert not fake.models, "weights left open"
            assert not fake.engines, "contexts left open"
            assert fake.open_bytes == 0

    return open_it
