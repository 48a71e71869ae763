from __future__ import annotations

from collections.abc import Callable

import pytest
from service_fakes import FakeCatalog, make_entry


def make_catalog() -> FakeCatalog:
    return FakeCatalog(
        [
            make_entry("small", aliases=("tiny",), size_bytes=100, ctx_tokens=4096),
            make_entry("large", size_bytes=900, ctx_tokens=32768),
            make_entry(
                "helper",
                size_bytes=500,
                ctx_tokens=4096,
                capabilities=frozenset({"completion", "chat", "tools"}),
            ),
            make_entry("base", size_bytes=10, capabilities=frozenset({"completion"})),
            make_entry("pirate", base="small", system="Talk like a pirate."),
            make_entry("vectors", size_bytes=50, kind="embed", capabilities=frozenset({"embedding"})),
        ]
    )


@pytest.fixture(scope="session", name="make_catalog")
def make_catalog_fixture() -> Callable[[], FakeCatalog]:
    return make_catalog


@pytest.fixture
def catalog() -> FakeCatalog:
    return make_catalog()
