"""Stands in for the library in the tests of the router, the service and the API.

``from service_fakes import make_entry, FakeCatalog, FakeManager`` works in every test file. A ``FakeManager``
hands out real engines on a real lane over ``FakeRunner`` contexts, and counts the leases that are out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio.lowlevel
import pytest
from fakes import FakeRunner, FakeVocab

from shardload.chat.messages import Message
from shardload.engine import Engine, Lane
from shardload.errors import ModelNotFound
from shardload.library.entry import ModelEntry
from shardload.service import Answer, Options, Service

ASKED = (Message("user", "Hi"),)
GREEDY = Options(temperature=0)


def make_entry(name: str, **changes: Any) -> ModelEntry:
    values: dict[str, Any] = {
        "path": Path(f"/models/{name}.gguf"),
        "paths": (Path(f"/models/{name}.gguf"),),
        "aliases": (),
        "base": None,
        "ctx_tokens": 512,
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
        "context_length": 512,
        "file_key": ((1, len(name), 1000, 0),),
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

    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.found)


@dataclass
class FakeLease:
    manager: FakeManager
    entry: ModelEntry
    engine: Engine
    kind: str
    keep_alive_seconds: float | None
    vocab: Any = field(default_factory=FakeVocab)
    load_seconds: float = 0.0
    released: bool = False

    @property
    def ctx_tokens(self) -> int:
        return self.engine.ctx_tokens

    def release(self) -> None:
        if not self.released:
            self.released = True
            self.manager.leases.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass
class FakeStatus:
    name: str
    state: str
    size_bytes: int
    resident_bytes: int | None


@dataclass
class FakeManager:
    """Opens at once unless ``gate`` is held; ``failures`` are raised for the models that they name."""

    lane: Lane
    reply: Callable[[bytes], str] | None = lambda prompt: f"<{prompt.decode()}>"
    failures: dict[str, Exception] = field(default_factory=dict)
    statuses: list[FakeStatus] = field(default_factory=list)
    vocab: Any = field(default_factory=FakeVocab)
    gate: asyncio.Event | None = None
    leases: list[FakeLease] = field(default_factory=list)
    history: list[FakeLease] = field(default_factory=list)
    runners: dict[tuple[str, str], FakeRunner] = field(default_factory=dict)
    engines: dict[tuple[str, str], Engine] = field(default_factory=dict)
    statuses_asked: int = 0

    async def lease(
        self,
        entry: ModelEntry,
        *,
        kind: str = "generate",
        keep_alive_seconds: Any = None,
        progress: Any = None,
    ) -> FakeLease:
        if self.gate is not None:
            await self.gate.wait()
        if progress is not None:
            progress(entry.name)
        if (failure := self.failures.get(entry.name)) is not None:
            raise failure
        key = (entry.name, kind)
        if key not in self.engines:
            self.runners[key] = FakeRunner(ctx_tokens=entry.ctx_tokens, slots=entry.slots, reply=self.reply)
            self.engines[key] = self.lane.attach(self.runners[key], name=entry.name)
        lease = FakeLease(self, entry, self.engines[key], kind, keep_alive_seconds, self.vocab)
        self.leases.append(lease)
        self.history.append(lease)
        return lease

    def status(self) -> list[FakeStatus]:
        self.statuses_asked += 1
        return self.statuses


async def read(answer: Answer) -> dict[int, str]:
    """The text of each choice."""
    texts: dict[int, str] = {}
    async for delta in answer:
        texts[delta.index] = texts.get(delta.index, "") + delta.text
    return texts


async def ask(service: Service, request: Any) -> dict[int, str]:
    """The text of each choice of what is answered to a request."""
    return await read(await service.start(service.plan(request)))


def count_wakes(
    loop: asyncio.AbstractEventLoop, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """The times that a loop is brought deltas from here on; before every step of the runner it is idle."""
    wakes: list[Any] = []
    plain = loop.call_soon_threadsafe

    def counted(callback: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(callback, "__name__", "") == "deliver":
            wakes.append(callback)
        return plain(callback, *arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    runner.on_decode = lambda runs: asyncio.run_coroutine_threadsafe(settle(), loop).result(30)
    return wakes


async def settle() -> None:
    """Let everything happen on the event loop that can without anybody's help."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
