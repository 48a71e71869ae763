from __future__ import annotations

from collections.abc import Iterator

import pytest
from service_fakes import FakeCatalog, FakeManager, make_entry

from shardload.engine import Lane
from shardload.service import Service


@pytest.fixture
def lane() -> Iterator[Lane]:
    with Lane() as lane:
        yield lane


@pytest.fixture
def manager(lane: Lane) -> FakeManager:
    return FakeManager(lane)


@pytest.fixture
def catalog() -> FakeCatalog:
    return FakeCatalog(
        [
            make_entry("small", size_bytes=100),
            make_entry("large", size_bytes=900),
            make_entry(
                "pirate",
                base="small",
                system="Arr.",
                parameters={"temperature": 0.0, "max_tokens": 3},
            ),
            make_entry("vectors", kind="embed", capabilities=frozenset({"embedding"})),
        ]
    )


@pytest.fixture
def service(catalog: FakeCatalog, manager: FakeManager) -> Service:
    return Service(catalog, manager)  # type: ignore[arg-type]
