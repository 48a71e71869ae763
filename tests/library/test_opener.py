from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shardload import demo
from shardload.config import EngineConfig, parse_config
from shardload.engine.lane import Lane
from shardload.errors import HandleClosed, LoadFailed, OpenFailed
from shardload.library.catalog import Catalog
from shardload.library.entry import ModelEntry
from shardload.library.manager import Manager
from shardload.library.opener import LlamaOpener, available_cores

pytestmark = [pytest.mark.anyio, pytest.mark.real]

DEMO = Path(demo.__file__).parent
Make = Callable[..., Path]


@pytest.fixture
async def opener() -> AsyncIterator[LlamaOpener]:
    with Lane() as lane:
        yield LlamaOpener(lane, EngineConfig())


def entry_of(name: str, text: str = "") -> ModelEntry:
    config = parse_config(f"files = ['{DEMO / name}.gguf']\n{text}", DEMO / "x.toml")
    return Catalog(config).get(name)


def ignore(_fraction: float) -> None:
    pass


async def test_predicts_what_llama_takes(opener: LlamaOpener) -> None:
    for ctx_tokens in (256, 1024):
        entry = entry_of("fable", f"engine.ctx = {ctx_tokens}")
        prediction = opener.predict(entry, "generate")
        weights = await opener.open_weights(entry, ignore)
        instance = await opener.open_instance(weights, entry, "generate")
        assert instance.ctx_tokens == ctx_tokens
        assert instance.kv_bytes == pytest.approx(prediction.kv_bytes, rel=0.01)
        assert instance.private_bytes <= 2 * prediction.private_bytes
        assert prediction.weights_bytes == pytest.approx(weights.model.size_bytes, rel=0.01)
        await opener.close_instance(instance)
        await opener.close_weights(weights, drop_pages=False)


async def test_progress_comes_to_the_event_loop(opener: LlamaOpener) -> None:
    seen: list[float] = []
    task = asyncio.current_task()
    entry = entry_of("fable")
    weights = await opener.open_weights(
        entry, lambda fraction: seen.append(fraction) if asyncio.current_task() is not task else None
    )
    await asyncio.sleep(0)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) <= 101
    await opener.close_weights(weights, drop_pages=True)


async def test_embedding_contexts_take_a_whole_prompt(opener: LlamaOpener) -> None:
    entry = entry_of("embed")
    assert entry.kind == "embed"
    weights = await opener.open_weights(entry, ignore)
    instance = await opener.open_instance(weights, entry, "embed")
    tokens = [5] * (entry.ctx_tokens - 2)
    (vector,) = await asyncio.wrap_future(instance.engine.embed([tokens]))
    assert float((vector**2).sum()) == pytest.approx(1.0, rel=1e-4)
    assert await opener.resident_bytes([weights]) != [0]
    await opener.close_instance(instance)
    await opener.close_weights(weights, drop_pages=True)
    with pytest.raises(HandleClosed):
        await opener.resident_bytes([weights])


async def test_a_file_that_llama_refuses(opener: LlamaOpener, make_model: Make, tmp_path: Path) -> None:
    make_model("strange.gguf", architecture="nonesuch")
    (tmp_path / "fable.gguf").write_bytes((DEMO / "fable.gguf").read_bytes())
    catalog = Catalog(parse_config("folders = ['.']", tmp_path / "x.toml"))
    async with Manager(catalog, opener, budget_bytes=2**30) as manager:
        with pytest.raises(OpenFailed, match=r"'strange' could not be opened: .*nonesuch"):
            await manager.lease(catalog.get("strange"))
        with await manager.lease(catalog.get("fable")) as lease:
            assert lease.vocab.tokenize("once")
            assert lease.chat_template
        (tmp_path / "fable.gguf").unlink()
        await manager.unload("fable")
        with pytest.raises(OpenFailed, match="No such file"):
            await manager.lease(catalog.get("fable"))


async def test_giving_up(opener: LlamaOpener) -> None:
    opener.give_up()
    with pytest.raises(LoadFailed, match="ending"):
        await opener.open_weights(entry_of("fable"), ignore)


async def test_contexts_share_weights(opener: LlamaOpener) -> None:
    text = "models.short = { base = 'fable', ctx = 128 }"
    config = parse_config(f"files = ['{DEMO / 'fable.gguf'}']\n{text}", DEMO / "x.toml")
    catalog = Catalog(config)
    async with Manager(catalog, opener, budget_bytes=2**30) as manager:
        long, short = await manager.lease(catalog.get("fable")), await manager.lease(catalog.get("short"))
        assert long.vocab is short.vocab
        engines: list[Any] = [long.engine, short.engine]
        assert engines[0] is not engines[1]
        await manager.measure()
        statuses = manager.status()
        assert sum(status.opens for status in statuses) == 2
        assert statuses[0].resident_bytes == statuses[1].resident_bytes
        for lease in (long, short):
            lease.release()


def test_available_cores() -> None:
    assert 1 <= available_cores() <= 1024
