"""Stands in for llama.cpp in the tests of the library: opens at once, and counts what is in memory.

``from fake_opener import FakeOpener`` works in every test file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
from fakes import FakeVocab

from shardload.engine.stats import EngineStats
from shardload.errors import LoadFailed
from shardload.library.entry import ModelEntry, Use
from shardload.library.estimate import Prediction
from shardload.library.opener import InstanceHandle, Progress, Residency, WeightsFacts, WeightsHandle

WEIGHTS_BYTES = 100
VOCABULARY_BYTES = 10
KV_BYTES = 15
COMPUTE_BYTES = 5
CONTEXT_BYTES = KV_BYTES + COMPUTE_BYTES
ONE_MODEL = WEIGHTS_BYTES + VOCABULARY_BYTES + CONTEXT_BYTES


class FakeClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class FakeEngine:
    """Tells which file it computes, and whether somebody may still use it."""

    path: Path
    kind: Use
    private_bytes: int
    model: FakeModel
    closed: bool = False
    parked_bytes: int = 0
    stats: EngineStats = field(default_factory=EngineStats)


@dataclass(eq=False)
class FakeModel:
    """An open file, and what of it is in memory."""

    entry: ModelEntry
    places: dict[Hashable, int]
    second_bytes: int
    limit_bytes: int | None = None
    second_allowed: bool = True
    second_resident_bytes: int = 0
    page_outs: int = 0
    closed: bool = False

    @property
    def name(self) -> str:
        return self.entry.path.stem


class FakeOpener:
    """Opens at once, unless a file is held or fails; keeps account of everything that is in memory."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.sizes: dict[str, int] = {}
        self.places: dict[str, dict[Hashable, int]] = {}
        self.seconds: dict[str, int] = {}
        self.layers: dict[str, int] = {}
        self.resident: dict[str, int] = {}
        self.cached: dict[str, int | None] = {}
        self.failures: dict[str, Exception] = {}
        self.context_failures: dict[str, Exception] = {}
        self.stubborn: set[str] = set()
        self.foresees_sharing = False
        self.extra_private_bytes = 0
        self.open_seconds = 0.0
        self.models: list[FakeModel] = []
        self.engines: list[FakeEngine] = []
        self.opens: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.closes: list[tuple[str, bool]] = []
        self.moves: list[tuple[Any, ...]] = []
        self.measurements = 0
        self.given_up = False
        self.cache: dict[Hashable, int] = {}
        """Resident bytes of each place."""
        self._held: dict[str, anyio.Event] = {}
        self._held_closes: dict[str, anyio.Event] = {}
        self._held_moves: dict[str, anyio.Event] = {}

    def hold(self, name: str) -> Callable[[], None]:
        """Let the open of a file wait; calling the result lets it go on."""
        return self._held.setdefault(name, anyio.Event()).set

    def hold_close(self, name: str) -> Callable[[], None]:
        return self._held_closes.setdefault(name, anyio.Event()).set

    def hold_move(self, name: str) -> Callable[[], None]:
        """Let page-outs, parking and changes of the limit wait."""
        return self._held_moves.setdefault(name, anyio.Event()).set

    def let_go(self, name: str) -> None:
        """End every hold on a file."""
        for held in (self._held, self._held_closes, self._held_moves):
            if (event := held.pop(name, None)) is not None:
                event.set()

    @property
    def open_bytes(self) -> int:
        """What is in memory because something is open."""
        places = {place for model in self.models for place in model.places}
        private = sum(engine.private_bytes - engine.parked_bytes for engine in self.engines)
        return (
            private
            + VOCABULARY_BYTES * len(self.models)
            + sum(self.cache.get(place, 0) for place in places)
            + sum(model.second_resident_bytes for model in self.models)
        )

    def model(self, name: str) -> FakeModel:
        return next(model for model in self.models if model.name == name)

    def compute(self, engine: FakeEngine, *, prompt: bool = True) -> None:
        """Touch everything that a step touches."""
        engine.parked_bytes = 0
        model = engine.model
        engine.stats.decode_steps_total += 1
        self.steps[model.name] += 1
        self._fill(model)
        if prompt and model.second_allowed:
            model.second_resident_bytes = model.second_bytes

    def predict(self, entry: ModelEntry, kind: Use) -> Prediction:
        name = entry.path.stem
        places = self._places(entry)
        return Prediction(
            sum(places.values()),
            VOCABULARY_BYTES,
            KV_BYTES,
            COMPUTE_BYTES,
            self.layers.get(name, 0),
            (lambda: places) if self.foresees_sharing else dict,
        )

    async def open_weights(
        self, entry: ModelEntry, progress: Progress, *, resident_limit_bytes: int | None = None
    ) -> WeightsHandle:
        name = entry.path.stem
        self.opens[name] += 1
        if (event := self._held.get(name)) is not None:
            progress(0.5)
            await event.wait()
        self.clock.now += self.open_seconds
        if self.given_up:
            raise LoadFailed(str(entry.path), "given up")
        if (failure := self.failures.get(name)) is not None:
            raise failure
        assert all(model.entry.file_key != entry.file_key for model in self.models), "weights opened twice"
        model = FakeModel(entry, self._places(entry), self.seconds.get(name, 0), resident_limit_bytes)
        self.models.append(model)
        self._fill(model)
        return WeightsHandle(cast(Any, FakeVocab()), lambda: self._facts(model), model)

    async def open_instance(self, weights: WeightsHandle, entry: ModelEntry, kind: Use) -> InstanceHandle:
        assert not weights.model.closed, "context on closed weights"
        if (failure := self.context_failures.get(entry.path.stem)) is not None:
            raise failure
        private = KV_BYTES + COMPUTE_BYTES + self.extra_private_bytes
        engine = FakeEngine(entry.path, kind, private, weights.model)
        self.engines.append(engine)
        return InstanceHandle(cast(Any, engine), entry.ctx_tokens, KV_BYTES, private, engine)

    async def close_instance(self, instance: InstanceHandle) -> None:
        engine: FakeEngine = instance.runner
        assert not engine.closed, "context closed twice"
        engine.closed = True
        if (event := self._held_closes.get(engine.path.stem)) is not None:
            await event.wait()
        await anyio.lowlevel.checkpoint()
        engine.stats.parked_total += 1
        self.engines.remove(engine)

    async def park_instance(self, instance: InstanceHandle) -> int:
        engine: FakeEngine = instance.runner
        await self._move(engine.path.stem, "park")
        if engine.closed or engine.path.stem in self.stubborn:
            return 0
        engine.parked_bytes = KV_BYTES
        return KV_BYTES

    async def close_weights(self, weights: WeightsHandle, *, drop_pages: bool) -> None:
        model = weights.model
        assert not model.closed, "weights closed twice"
        assert all(each.closed for each in self.engines if each.model is model), "contexts on closed weights"
        model.closed = True
        await anyio.lowlevel.checkpoint()
        self.models.remove(model)
        self.closes.append((model.name, drop_pages))

    async def measure(self, weights: Sequence[WeightsHandle]) -> list[Residency | None]:
        self.measurements += 1
        await anyio.lowlevel.checkpoint()
        seen: set[Hashable] = set()
        found: list[Residency | None] = []
        for handle in weights:
            model: FakeModel = handle.model
            assert not model.closed, "measured when closed"
            resident = sum(self.cache.get(place, 0) for place in model.places if place not in seen)
            shared = sum(
                self.cache.get(place, 0)
                for place in model.places
                if any(place in other.places for other in self.models if other is not model)
            )
            seen |= set(model.places)
            resident = self.resident.get(model.name, resident)
            found.append(Residency(resident, model.second_resident_bytes, shared))
        return found

    async def page_out(
        self, weights: WeightsHandle, keep_bytes: int, sparing: Sequence[WeightsHandle]
    ) -> int:
        model: FakeModel = weights.model
        assert not model.closed, "pages of closed weights"
        await self._move(model.name, "page out", keep_bytes)
        if model.name in self.stubborn:
            return 0
        before = self.open_bytes
        model.second_resident_bytes = 0
        spared = {place for handle in sparing for place in handle.model.places}
        self._shrink([place for place in model.places if place not in spared], keep_bytes)
        model.page_outs += before - self.open_bytes
        return before - self.open_bytes

    def bring_back(self, weights: WeightsHandle) -> None:
        self.moves.append((weights.model.name, "bring back"))

    def allow_second_layout(self, weights: WeightsHandle, allowed: bool) -> None:
        weights.model.second_allowed = allowed

    async def set_resident_limit(self, weights: WeightsHandle, limit_bytes: int | None) -> None:
        model: FakeModel = weights.model
        await self._move(model.name, "limit", limit_bytes)
        model.limit_bytes = limit_bytes
        if limit_bytes is not None and model.name not in self.stubborn:
            self._shrink(list(model.places), limit_bytes)

    async def cached_bytes(self, files: Sequence[Sequence[Path]]) -> list[int | None]:
        await anyio.lowlevel.checkpoint()
        return [self.cached.get(parts[0].stem, 0) for parts in files]

    def give_up(self) -> None:
        self.given_up = True
        for held in (self._held, self._held_closes, self._held_moves):
            for event in held.values():
                event.set()

    def _places(self, entry: ModelEntry) -> dict[Hashable, int]:
        name = entry.path.stem
        return self.places.get(name) or {entry.file_key: self.sizes.get(name, WEIGHTS_BYTES)}

    def _facts(self, model: FakeModel) -> WeightsFacts:
        size = sum(model.places.values())
        return WeightsFacts(
            VOCABULARY_BYTES,
            size,
            second_bytes=model.second_bytes,
            places=model.places,
            page_outs=model.page_outs,
        )

    def _fill(self, model: FakeModel) -> None:
        self.cache |= model.places
        if model.limit_bytes is not None:
            self._shrink(list(model.places), model.limit_bytes)

    def _shrink(self, places: Sequence[Hashable], keep_bytes: int) -> None:
        surplus = sum(self.cache.get(place, 0) for place in places) - keep_bytes
        for place in places:
            leaving = min(max(surplus, 0), self.cache.get(place, 0))
            self.cache[place] = self.cache.get(place, 0) - leaving
            surplus -= leaving

    async def _move(self, name: str, *what: object) -> None:
        self.moves.append((name, *what))
        if (event := self._held_moves.get(name)) is not None:
            await event.wait()
        await anyio.lowlevel.checkpoint()
