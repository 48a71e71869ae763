from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shardload.errors import ModelNotFound
from shardload.library.entry import ModelEntry

MakeEntry = Callable[..., ModelEntry]


def make_entry(name: str, **changes: Any) -> ModelEntry:
    values: dict[str, Any] = {
        "path": Path(f"/models/{name}.gguf"),
        "paths": (Path(f"/models/{name}.gguf"),),
        "aliases": (),
        "base": None,
        "ctx_tokens": 4096,
        "slots": 4,
        "parameters": {},
        "system": None,
        "chat_template": None,
        "pin": False,
        "preload": False,
        "keep_alive_seconds": None,
        "kind": "generate",
        "capabilities": frozenset({"completion", "chat"}),
        "architecture": "llama",
        "parameter_count": 1000,
        "size_bytes": 1000,
        "context_length": 4096,
        "file_key": ((1, hash(name), 1000, 0),),
        "created": 0,
    }
    return ModelEntry(name=name, **{**values, **changes})


@dataclass
class FakeCatalog:
    found: list[ModelEntry] = field(default_factory=list)

    def get(self, name: str) -> ModelEntry:
        for entry in self.found:
            if name == entry.name or name in entry.aliases:
                return entry
        raise ModelNotFound(name, self.names())

    def entries(self) -> list[ModelEntry]:
        return self.found

    def names(self) -> list[str]:
        return [entry.name for entry in self.found]


@pytest.fixture(scope="session", name="make_entry")
def make_entry_fixture() -> MakeEntry:
    return make_entry


def make_catalog() -> FakeCatalog:
    return FakeCatalog(
        [
            make_entry("small", aliases=("tiny",), size_bytes=100),
            make_entry("large", size_bytes=900, ctx_tokens=32768),
            make_entry("helper", size_bytes=500, capabilities=frozenset({"completion", "chat", "tools"})),
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
