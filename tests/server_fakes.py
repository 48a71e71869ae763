"""What an application serves with, without a model behind it: answers say what a test lays out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from service_fakes import FakeCatalog, make_entry

from shardload.answer import AnswerDelta
from shardload.config import Config
from shardload.engine.request import Finish, Timings, Usage
from shardload.engine.stats import EngineTotals
from shardload.library.entry import ModelEntry
from shardload.library.opener import ShardResidency
from shardload.requests import EmbeddingRequest


def entry(name: str) -> ModelEntry:
    return make_entry(
        name,
        aliases=(f"{name}-alias",),
        chat_template="",
        size_bytes=4096,
        context_length=1024,
        created=1700000000,
    )


def finish(prompt_tokens: int = 3, completion_tokens: int = 2, reason: Any = "stop") -> Finish:
    return Finish(
        reason=reason,
        stop_string=None,
        usage=Usage(prompt_tokens=prompt_tokens, cached_tokens=1, completion_tokens=completion_tokens),
        timings=Timings(queued_seconds=0.001, prompt_seconds=0.01, decode_seconds=0.02),
    )


@dataclass
class FakeStatus:
    name: str
    state: str = "open"
    resident_bytes: int | None = 2048
    size_bytes: int = 4096
    private_bytes: int = 512
    kv_bytes: int = 256
    leases: int = 0
    queued: int = 0
    pinned: bool = False
    expires_in_seconds: float | None = 12.0
    ctx_tokens: int = 512
    slots: int = 4
    last_used: float = 0.0
    opens: int = 2
    evictions: int = 1
    error: str | None = None
    warm_share: float | None = 0.5
    resident_limit_bytes: int | None = None
    shared_bytes: int = 1024
    packed_bytes: int = 1536
    second_bytes: int = 128
    page_ins: int = 4096
    page_outs: int = 2048
    waited_seconds: float = 0.25
    running_sequences: int = 3
    queued_sequences: int = 5
    work: EngineTotals = field(
        default_factory=lambda: EngineTotals(
            decode_steps_total=7,
            compute_seconds_total=1.5,
            paused_total=2,
            parked_total=4,
            restored_total=3,
            restored_tokens_total=900,
        )
    )
    shards: tuple[ShardResidency, ...] = (
        ShardResidency("embeddings", 1000, 500, 0),
        ShardResidency("block 0", 3096, 1548, 128, ("grace",)),
    )


@dataclass
class FakeManager:
    catalog: FakeCatalog
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failure: Exception | None = None
    pinned: set[str] = field(default_factory=set)
    measured: int = 0
    looks: list[bool] = field(default_factory=list)
    coming: list[str] = field(default_factory=list)
    """Names that the next look finds."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def status(self) -> list[FakeStatus]:
        return [
            FakeStatus(name, pinned=name in self.pinned, **self.changes.get(name, {}))
            for name in self.catalog.names()
        ]

    async def measure(self) -> None:
        self.measured += 1

    async def look_again(self, *, at_once: bool = False) -> None:
        self.looks.append(at_once)
        for name in self.coming:
            self.catalog.found.append(entry(name))
        self.coming.clear()

    async def load(
        self, name: str, *, pin: bool | None = None, keep_alive_seconds: float | None = None
    ) -> None:
        self._note("load", name, pin, keep_alive_seconds)
        if pin:
            self.pinned.add(name)

    async def unload(self, name: str) -> tuple[str, ...]:
        self._note("unload", name)
        unpinned = tuple(self.pinned & {self.catalog.get(name).name})
        self.pinned.difference_update(unpinned)
        return unpinned

    def pin(self, name: str, pinned: bool) -> None:
        self._note("pin", name, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(name)

    async def swap(self, name: str, path: Path) -> None:
        self._note("swap", name, path)

    async def reconfigure(self, config: Config) -> None:
        self._note("reconfigure", config)

    def _note(self, verb: str, name: Any, *rest: Any) -> None:
        if isinstance(name, str):
            self.catalog.get(name)
        self.calls.append((verb, name, *rest))
        if self.failure is not None:
            raise self.failure


class FakeAnswer:
    """An answer that says what the test puts in; an exception put in is raised."""

    def __init__(self, model: str) -> None:
        self.id, self.created, self.model, self.rule = "chatcmpl-fake", 1700000001, model, "name"
        self.usage = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=0)
        self.closed = asyncio.Event()
        self.waiting = asyncio.Event()
        self.patient = False
        self._deltas: asyncio.Queue[AnswerDelta | Exception | None] = asyncio.Queue()

    def be_patient(self) -> None:
        self.patient = True

    def say(self, *texts: str, index: int = 0) -> FakeAnswer:
        for text in texts:
            self._deltas.put_nowait(AnswerDelta(index, text))
        return self

    def put(self, *items: AnswerDelta | Exception) -> FakeAnswer:
        for item in items:
            self._deltas.put_nowait(item)
        return self

    def end(self, *, index: int = 0, last: bool = True, reason: str = "stop") -> FakeAnswer:
        self._deltas.put_nowait(AnswerDelta(index, "", finish=finish(reason=reason)))
        if last:
            self._deltas.put_nowait(None)
        return self

    def __aiter__(self) -> FakeAnswer:
        return self

    async def __anext__(self) -> AnswerDelta:
        self.waiting.set()
        item = await self._deltas.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        self.usage = replace(self.usage, completion_tokens=self.usage.completion_tokens + bool(item.text))
        return item

    async def aclose(self) -> None:
        self.closed.set()


@dataclass(frozen=True)
class FakePlan:
    request: Any
    headers: Mapping[str, str]
    key: str | None
    rule: str = "name"

    @property
    def decision(self) -> Any:
        return SimpleNamespace(candidates=("the only one",))

    @property
    def model(self) -> str:
        name: str = self.request.model
        return name


@dataclass(frozen=True)
class FakeEmbeddings:
    vectors: Sequence[np.ndarray]
    prompt_tokens: int = 5
    model: str = "ada"
    rule: str = "name"


def catalog_of_three() -> FakeCatalog:
    return FakeCatalog([entry(name) for name in ("ada", "grace", "org/model")])


class FakeService:
    """Starts the answers that a test lays out, in order; without any, says "Hello there" at once."""

    def __init__(self, catalog: FakeCatalog) -> None:
        self.catalog = catalog
        self.plans: list[FakePlan] = []
        self.answers: list[FakeAnswer] = []
        self.failure: BaseException | None = None
        self.starting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.opening: Callable[[Callable[[Any], None] | None], Any] | None = None

    def plan(self, request: Any, *, headers: Mapping[str, str], key: str | None) -> FakePlan:
        request.check()
        self.catalog.get(request.model)
        self.plans.append(FakePlan(request, headers, key))
        return self.plans[-1]

    async def start(self, plan: FakePlan, progress: Callable[[Any], None] | None = None) -> FakeAnswer:
        await self._open(progress)
        if self.answers:
            return self.answers.pop(0)
        return FakeAnswer(plan.request.model).say("Hello", " there").end()

    async def embed(self, plan: FakePlan, progress: Any = None) -> FakeEmbeddings:
        assert isinstance(plan.request, EmbeddingRequest)
        await self._open(progress)
        return FakeEmbeddings([np.array([0.6, 0.8], dtype=np.float32) for _ in plan.request.inputs])

    async def _open(self, progress: Callable[[Any], None] | None) -> None:
        self.starting.set()
        try:
            if self.opening is not None:
                await self.opening(progress)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.failure is not None:
            raise self.failure
