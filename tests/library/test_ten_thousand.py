"""Many requests over more models than fit: none is lost, none is answered by another model, nothing grows."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import anyio
import numpy as np
import pytest
from fake_library import write_model
from fake_opener import KV_BYTES, ONE_MODEL, FakeClock, FakeOpener
from fakes import FakeRunner

from shardload import demo
from shardload.config import EngineConfig, parse_config
from shardload.engine.lane import Lane
from shardload.engine.request import GenerationRequest
from shardload.engine.sampling import SamplingParams
from shardload.gguf import GGUFFile
from shardload.library.catalog import Catalog
from shardload.library.entry import ModelEntry, Use
from shardload.library.llama_opener import LlamaOpener
from shardload.library.llama_paging import LlamaPaging
from shardload.library.manager import Manager
from shardload.library.opener import InstanceHandle, WeightsHandle
from shardload.memory import process_memory, trim_heap

pytestmark = pytest.mark.anyio

NAMES = tuple(f"{letter}-model" for letter in "abcdefgh")
CLIENTS = 24
PROMPT = "once upon"


class RunningOpener(FakeOpener):
    """Opens contexts that answer with the name of their file, on a real lane."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(FakeClock())
        self._lane = lane

    async def open_instance(self, weights: WeightsHandle, entry: ModelEntry, kind: Use) -> InstanceHandle:
        handle = await super().open_instance(weights, entry, kind)
        name = entry.path.stem
        runner = FakeRunner(ctx_tokens=entry.ctx_tokens, slots=entry.slots, reply=lambda _prompt: name)
        engine = self._lane.attach(runner, name=entry.name)
        runner_of = (handle.runner, runner, engine)
        return InstanceHandle(cast(Any, engine), entry.ctx_tokens, KV_BYTES, handle.private_bytes, runner_of)

    async def park_instance(self, instance: InstanceHandle) -> int:
        return await super().park_instance(self._fake(instance))

    async def close_instance(self, instance: InstanceHandle) -> None:
        _, runner, engine = instance.runner
        await asyncio.shield(asyncio.wrap_future(self._lane.detach(engine)))
        runner.close()
        await super().close_instance(self._fake(instance))

    def _fake(self, instance: InstanceHandle) -> InstanceHandle:
        fake = instance.runner[0]
        return InstanceHandle(fake, instance.ctx_tokens, KV_BYTES, instance.private_bytes, fake)


async def answer(manager: Manager, name: str) -> str:
    """One request, as the service makes it."""
    with await manager.lease(manager.catalog.get(name)) as lease:
        request = GenerationRequest(
            lease.vocab.tokenize(PROMPT),
            max_tokens=4,
            # With a seed the arithmetic does not depend on what else is in a batch.
            sampling=SamplingParams(temperature=0, seed=1),
        )
        stream = lease.engine.stream(request)
        try:
            return "".join([delta.text async for delta in stream])
        finally:
            await stream.aclose()


async def serve(manager: Manager, count: int, expected: dict[str, str], seed: int) -> None:
    """Send requests for random models from several clients and check every answer."""
    order = random.Random(seed)
    names = iter([order.choice(NAMES) for _ in range(count)])
    answered = 0

    async def client() -> None:
        nonlocal answered
        for name in names:
            assert await answer(manager, name) == expected[name]
            answered += 1

    async with anyio.create_task_group() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(client)
    assert answered == count


def catalog_of(folder: Path) -> Catalog:
    return Catalog.from_config(parse_config("folders = ['.']\nengine.ctx = 256", folder / "x.toml"))


async def test_fakes(tmp_path: Path) -> None:
    for name in NAMES:
        write_model(tmp_path / f"{name}.gguf")
    expected = {name: name[:4] for name in NAMES}
    with Lane() as lane:
        opener = RunningOpener(lane)
        async with Manager(
            catalog_of(tmp_path), opener, budget_bytes=3 * ONE_MODEL, max_wait_seconds=0.05
        ) as manager:
            await serve(manager, 1000, expected, seed=1)
            after_first_thousand = object_count()
            await serve(manager, 9000, expected, seed=2)
            assert object_count() < after_first_thousand + 500
            assert sum(status.evictions for status in manager.status()) > 100
            assert all(status.leases == 0 and status.queued == 0 for status in manager.status())


def object_count() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.real
async def test_llama(tmp_path: Path) -> None:
    for index, name in enumerate(NAMES):
        write_variant(tmp_path / f"{name}.gguf", index)
    catalog = catalog_of(tmp_path)
    with Lane() as lane, closing(LlamaPaging()) as paging:
        opener = LlamaOpener(lane, EngineConfig(threads=1), paging)
        one = opener.predict(catalog.get(NAMES[0]), "generate")
        budget_bytes = int(3.5 * (one.weights_bytes + one.private_bytes))
        async with Manager(catalog, opener, budget_bytes=budget_bytes, max_wait_seconds=0.2) as manager:
            expected = {name: await answer(manager, name) for name in NAMES}
            private_bytes = max(status.private_bytes for status in manager.status())
            assert len(set(expected.values())) == len(NAMES), "the models differ"
            await serve(manager, 1000, expected, seed=1)
            after_first_thousand = await bytes_without_models(manager)
            await serve(manager, 9000, expected, seed=2)
            # What is lost each time a model is closed, or for each request, is more than one model by now.
            assert await bytes_without_models(manager) < after_first_thousand + private_bytes


async def bytes_without_models(manager: Manager) -> int:
    """What is in use: not what waits to be collected, or to be used again."""
    for name in NAMES:
        await manager.unload(name)
    gc.collect()
    trim_heap()
    return process_memory().anonymous_bytes


def write_variant(path: Path, index: int) -> None:
    """Write a demo model that says something else: its tokens mean those some rows further."""
    source = Path(demo.__file__).with_name("fable.gguf")
    data = bytearray(source.read_bytes())
    with GGUFFile(source) as gguf:
        tensor = gguf.tensors["token_embd.weight"]
        rows = np.roll(gguf.tensor("token_embd.weight"), 37 * index, axis=0)
    data[tensor.offset : tensor.offset + tensor.nbytes] = rows.tobytes()
    path.write_bytes(data)
