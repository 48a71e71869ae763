from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import pytest
from packable import LARGE, PROMPT, fine_tune, learn, linux_only, pack_file, small_model

from shardload import demo
from shardload.config import Config, EngineConfig, parse_config
from shardload.engine import GenerationRequest, Lane, ParkingLot, SamplingParams
from shardload.errors import HandleClosed, LoadFailed, ModelNotFound, OpenFailed
from shardload.library.catalog import Catalog
from shardload.library.entry import ModelEntry
from shardload.library.lease import Lease
from shardload.library.llama_opener import LlamaOpener, available_cores, cached_bytes
from shardload.library.llama_paging import LlamaPaging
from shardload.library.manager import Manager
from shardload.llama import Model, ModelParams
from shardload.memory import file_resident_bytes
from shardload.shards.pantry import Pantry

pytestmark = [pytest.mark.anyio, pytest.mark.real]

DEMO = Path(demo.__file__).parent
Make = Callable[..., Path]


@pytest.fixture
async def opener() -> AsyncIterator[LlamaOpener]:
    with Lane() as lane, closing(LlamaPaging()) as paging:
        yield LlamaOpener(lane, EngineConfig(), paging)


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
    (found,) = await opener.measure([weights])
    assert found is None or found.resident_bytes > 0
    await opener.close_instance(instance)
    await opener.close_weights(weights, drop_pages=True)
    assert await opener.measure([weights]) == [None]


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
        with pytest.raises(ModelNotFound):
            await manager.lease(catalog.get("fable"))


@pytest.mark.parametrize("replaced", [False, True])
async def test_weights_of_a_replaced_file_park_nothing_under_the_new_one(
    tmp_path: Path, replaced: bool
) -> None:
    file, lot = tmp_path / "fable.gguf", ParkingLot(None, 2**20, 0)
    shutil.copy(DEMO / "fable.gguf", file)
    entry = Catalog(parse_config(f"files = ['{file}']", tmp_path / "x.toml")).get("fable")
    with Lane() as lane, closing(LlamaPaging()) as paging:
        opener = LlamaOpener(lane, EngineConfig(), paging, lot)
        weights = await opener.open_weights(entry, ignore)
        if replaced:
            shutil.copy(DEMO / "pirate.gguf", tmp_path / "new")
            (tmp_path / "new").replace(file)
        assert (opener._parking_of(weights.model, "generate") is None) is replaced
        await opener.close_weights(weights, drop_pages=False)
    lot.close()


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), OSError(5, "broken disk")])
async def test_weights_close_whatever_their_pages_do(
    opener: LlamaOpener,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    weights = await opener.open_weights(entry_of("fable"), ignore)
    monkeypatch.setattr("shardload.llama.paged.PagedWeights.page_out", fail)
    await opener.close_weights(weights, drop_pages=True)
    with pytest.raises(HandleClosed):
        _ = weights.model.pointer
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.endswith("broken disk") for message in logged] == [True] * (error.errno == 5)


async def test_a_file_that_was_deleted_while_it_was_open(
    opener: LlamaOpener, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    copy = tmp_path / "fable.gguf"
    copy.write_bytes((DEMO / "fable.gguf").read_bytes())
    (entry,) = Catalog(Config(files=(str(copy),))).entries()
    weights = await opener.open_weights(entry, ignore)
    copy.unlink()
    # As on systems where nobody tells what is mapped: then the file itself is asked.
    weights.model.mappings = weights.model.tensors = ()
    weights.model.paged.refresh()
    assert await opener.measure([weights]) == [None]
    await opener.close_weights(weights, drop_pages=True)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_files_that_are_closed_are_measured(opener: LlamaOpener, tmp_path: Path) -> None:
    parts = [tmp_path / "1.gguf", tmp_path / "2.gguf"]
    for part in parts:
        part.write_bytes(bytes(100_000))
    whole, one, none = await opener.cached_bytes([parts, [parts[0], tmp_path / "gone.gguf"], []])
    assert (whole, one, none) == (cached_bytes(parts), file_resident_bytes(parts[0]), 0)
    assert whole is None or whole > 0


class Held:
    """A method of models that waits, once it was called, until a test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._called, self._go_on = threading.Event(), threading.Event()
        real = getattr(Model, name)

        def held(*arguments: Any) -> Any:
            self._called.set()
            assert self._go_on.wait(30)
            return real(*arguments)

        monkeypatch.setattr(Model, name, held)

    async def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel who waits for the method, in the middle of it."""
        assert await asyncio.to_thread(self._called.wait, 30)
        task.cancel()
        await anyio.lowlevel.checkpoint()
        assert not task.done()
        self._go_on.set()


async def test_a_cancelled_caller_waits_for_what_has_begun(
    opener: LlamaOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = asyncio.create_task(opener.open_weights(entry_of("fable"), ignore))
    await Held(monkeypatch, "open").cancel(opening)
    weights = await opening
    closing = asyncio.create_task(opener.close_weights(weights, drop_pages=False))
    await Held(monkeypatch, "close").cancel(closing)
    await closing
    with pytest.raises(HandleClosed):
        _ = weights.model.pointer


@pytest.fixture
async def storing(pantry: Pantry) -> AsyncIterator[LlamaOpener]:
    """An opener with a packed store."""
    with Lane() as lane, closing(LlamaPaging(pantry, None, lambda: lane.is_busy)) as paging:
        yield LlamaOpener(lane, EngineConfig(threads=1), paging)


def packable_entry(tmp_path: Path, name: str = "model") -> ModelEntry:
    path = tmp_path / f"{name}.gguf"
    if not path.exists():
        small_model(path)
    return Catalog(Config(files=(str(path),))).get(name)


async def packed(opener: LlamaOpener, weights: Any) -> None:
    job = opener._paging._open[weights.model].packing
    assert job is not None
    assert await anyio.to_thread.run_sync(job.done.wait, 30)


async def say(opener: LlamaOpener, weights: Any, entry: ModelEntry) -> tuple[int, ...]:
    instance = await opener.open_instance(weights, entry, "generate")
    request = GenerationRequest(PROMPT, max_tokens=8, sampling=SamplingParams(temperature=0), ignore_eos=True)
    said = tuple([token async for delta in instance.engine.stream(request) for token in delta.tokens])
    await opener.close_instance(instance)
    return said


@linux_only
async def test_what_is_packed_once_is_shared_and_mapped(storing: LlamaOpener, tmp_path: Path) -> None:
    entry = packable_entry(tmp_path)
    first = await storing.open_weights(entry, ignore)
    expected = await say(storing, first, entry)
    await packed(storing, first)
    assert first.facts.places
    second = await storing.open_weights(entry, ignore)
    assert second.facts.places == first.facts.places
    assert second.model.private_tensor_bytes == first.model.private_tensor_bytes == 0
    assert await say(storing, second, entry) == expected
    (one, other) = await storing.measure([first, second])
    assert one is not None
    assert other is not None
    assert one.packed_bytes > 0
    assert other.resident_bytes == 0, "its pages count for the first"
    assert other.elsewhere_bytes > 0
    await storing.close_weights(first, drop_pages=True)
    assert await say(storing, second, entry) == expected
    await storing.close_weights(second, drop_pages=True)


@linux_only
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
async def test_a_fine_tune_takes_the_room_of_what_it_changes(
    storing: LlamaOpener, pantry: Pantry, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_model(tmp_path / "base.gguf", kind, LARGE)
    paths = [base, fine_tune(tmp_path / "tuned.gguf", base)]
    paths.append(small_model(tmp_path / "other.gguf", kind, LARGE, seed=7))
    for path in paths:
        learn(path, pantry)
        pack_file(path, pantry)
    kept: list[bool] = []
    real = LlamaPaging.page_out

    def page_out(self: LlamaPaging, model: Any, keep_bytes: int, sparing: Any) -> int:
        kept.append(keep_bytes >= sum(model.paged.working.values()))
        return real(self, model, keep_bytes, sparing)

    monkeypatch.setattr(LlamaPaging, "page_out", page_out)
    config = Config(files=tuple(map(str, paths)), engine=EngineConfig(ctx=256, parallel=1))
    catalog = Catalog(config)
    prediction = storing.predict(catalog.get("base"), "generate")
    # For two models, what the third has for itself, and less of second orders than could be there.
    budget_bytes = int(2.5 * prediction.weights_bytes) + 3 * prediction.private_bytes
    async with Manager(catalog, storing, budget_bytes=budget_bytes) as manager:
        for name in ("base", "other", "tuned", "base", "tuned"):
            with await manager.lease(catalog.get(name)) as lease:
                request = GenerationRequest(PROMPT, max_tokens=2, sampling=SamplingParams(temperature=0))
                assert [delta async for delta in lease.engine.stream(request)]
            await manager.measure()
        assert all(kept), "pages left that every step needs"
        assert [(status.state, status.opens) for status in manager.status()] == [("open", 1)] * 3


@linux_only
async def test_weights_with_a_limit_are_never_packed_in_memory(storing: LlamaOpener, tmp_path: Path) -> None:
    entry = packable_entry(tmp_path)
    plain = await storing.open_weights(entry, ignore)
    expected = await say(storing, plain, entry)
    await storing.close_weights(plain, drop_pages=False)
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    weights = await storing.open_weights(entry, ignore, resident_limit_bytes=2**18)
    assert weights.model.private_tensor_bytes == 0
    assert weights.model.paged.streams
    await packed(storing, weights)
    assert weights.model.unstored_tensors == []
    assert await say(storing, weights, entry) == expected
    await storing.set_resident_limit(weights, 2**19)
    assert await say(storing, weights, entry) == expected
    await storing.set_resident_limit(weights, None)
    storing.bring_back(weights)
    storing.allow_second_layout(weights, False)
    assert await say(storing, weights, entry) == expected
    assert await storing.page_out(weights, 0, []) >= 0
    assert await say(storing, weights, entry) == expected
    await storing.close_weights(weights, drop_pages=False)


@linux_only
async def test_what_has_no_room_to_be_packed_streams_as_it_is(
    storing: LlamaOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    open_model = Model.open

    def refuse(paths: Any, params: ModelParams, progress: Any) -> Model:
        tried.append(params.use_extra_bufts)
        if params.use_extra_bufts:
            raise LoadFailed(str(paths[0]), "unable to allocate CPU_REPACK buffer")
        return open_model(paths, params, progress)

    entry = packable_entry(tmp_path)
    monkeypatch.setattr(Model, "open", refuse)
    weights = await storing.open_weights(entry, ignore, resident_limit_bytes=2**18)
    assert tried == [True, False]
    assert weights.model.paged.streams
    assert weights.model.unstored_tensors == []
    assert len(await say(storing, weights, entry)) == 8
    await storing.close_weights(weights, drop_pages=False)
    with pytest.raises(LoadFailed, match="unable"):
        await storing.open_weights(entry, ignore)
    assert tried == [True, False, True]


@linux_only
async def test_a_model_is_closed_while_it_is_packed(storing: LlamaOpener, tmp_path: Path) -> None:
    entries = [packable_entry(tmp_path, name) for name in ("one", "two")]
    storing._paging._packer._is_busy = lambda: True
    handles = [await storing.open_weights(entry, ignore) for entry in entries]
    for handle in reversed(handles):
        await storing.close_weights(handle, drop_pages=True)
        with pytest.raises(HandleClosed):
            _ = handle.model.pointer


async def test_a_model_whose_pages_nobody_can_mind_is_closed(
    opener: LlamaOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def fail(self: LlamaPaging, name: str, model: Any, *_: Any) -> None:
        opened.append(model)
        raise OSError("no more threads")

    monkeypatch.setattr(LlamaPaging, "opened", fail)
    with pytest.raises(OSError, match="no more"):
        await opener.open_weights(entry_of("fable"), ignore)
    with pytest.raises(HandleClosed):
        _ = opened[0].pointer


async def test_giving_up(opener: LlamaOpener) -> None:
    opener.give_up()
    with pytest.raises(LoadFailed, match="ending"):
        await opener.open_weights(entry_of("fable"), ignore)


async def test_a_seeded_text_is_the_same_in_every_context(opener: LlamaOpener) -> None:
    """Also in the ordinary context, which takes its place where memory is tight, and after other texts."""
    config = parse_config(f"files = ['{DEMO / 'fable.gguf'}']", DEMO / "x.toml")
    catalog = Catalog(config)

    async def say(lease: Lease, seed: int | None) -> tuple[int, ...]:
        sampling = SamplingParams(temperature=1.2, seed=seed)
        prompt = lease.vocab.tokenize("Once upon a time")
        stream = lease.engine.stream(GenerationRequest(prompt, max_tokens=60, sampling=sampling))
        return tuple([token async for delta in stream for token in delta.tokens])

    async with Manager(catalog, opener, budget_bytes=2**30) as manager:
        entry = catalog.get("fable")
        with await manager.lease(entry) as ordinary, await manager.lease(entry, kind="seeded") as seeded:
            assert seeded.engine is not ordinary.engine
            assert (seeded.engine.slots, seeded.ctx_tokens) == (1, ordinary.ctx_tokens)
            other = asyncio.create_task(say(ordinary, None))
            first = await say(seeded, 7)
            await other
            assert await say(seeded, 8) != first
            assert await say(seeded, 7) == first
            assert await say(ordinary, 7) == first


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
