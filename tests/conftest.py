"""Makes ``fakes`` importable from every test directory, and the library's API over them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
