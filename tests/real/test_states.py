"""Whatever state a model's weights and conversations are in, it says what llama.cpp's own load says."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from plain_load import PlainLoad
from turned_lane import GREEDY, Reader

from shardload.config import Config, EngineConfig
from shardload.engine import GenerationRequest, Lane, TokenLogprob
from shardload.engine.parking import ParkingLot
from shardload.library.catalog import Catalog
from shardload.library.llama_opener import LlamaOpener
from shardload.library.llama_paging import LlamaPaging
from shardload.library.opener import InstanceHandle, WeightsHandle
from shardload.shards.pantry import Pantry

pytestmark = [pytest.mark.anyio, pytest.mark.real]

TOKENS = 24
LONG_PROMPT = 150
SMALL_BYTES = 2**18
"""Less than any of the models."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def prompt(seed: int, tokens: int = 20) -> list[int]:
    """Ordinary tokens of any of the vocabularies."""
    source = random.Random(seed)
    return [source.randrange(300, 500) for _ in range(tokens)]


def say(instance: InstanceHandle, tokens: Sequence[int]) -> Reader:
    """A greedy answer of a fixed length."""
    reader = Reader()
    request = GenerationRequest(tokens, TOKENS, GREEDY, ignore_eos=True, top_logprobs=0)
    reader.sequence = instance.engine.submit(request, reader)
    return reader.wait()


def entries(reader: Reader) -> list[TokenLogprob]:
    _ = reader.finish
    return [entry for delta in reader.deltas for entry in delta.logprobs]


class Served:
    """A model that is open through the opener."""

    def __init__(self, opener: LlamaOpener, weights: WeightsHandle, instance: InstanceHandle) -> None:
        self.opener, self.weights, self.instance = opener, weights, instance

    def check(self, plain: PlainLoad, tokens: Sequence[int]) -> Reader:
        """Let it answer, and compare."""
        reader = say(self.instance, tokens)
        plain.check(tokens, entries(reader))
        return reader


@contextmanager
def opener_over(pantry: Pantry | None, parked: Path | None = None) -> Iterator[LlamaOpener]:
    """An opener with a packed store, or without one."""
    with (
        Lane() as lane,
        closing(LlamaPaging(pantry)) as paging,
        closing(ParkingLot(parked, 2**26, 2**28)) as lot,
    ):
        yield LlamaOpener(lane, EngineConfig(threads=1), paging, lot)


@asynccontextmanager
async def served(opener: LlamaOpener, path: Path, limit_bytes: int | None = None) -> AsyncIterator[Served]:
    """One model with a context, closed at the end."""
    config = Config(files=(str(path),), engine=EngineConfig(ctx=512, parallel=2))
    (entry,) = Catalog.from_config(config).entries()
    weights = await opener.open_weights(entry, lambda _fraction: None, resident_limit_bytes=limit_bytes)
    one = Served(opener, weights, await opener.open_instance(weights, entry, "generate"))
    try:
        yield one
    finally:
        await opener.close_instance(one.instance)
        await opener.close_weights(weights, drop_pages=True)


async def test_as_llama_packs_it_at_a_load(model_path: Path, plain: PlainLoad) -> None:
    with opener_over(None) as opener:
        async with served(opener, model_path) as model:
            model.check(plain, prompt(1))


async def test_from_the_packed_store(
    model_path: Path, plain: PlainLoad, pantry: Pantry, packed_bytes: int
) -> None:
    with opener_over(pantry) as opener:
        async with served(opener, model_path) as model:
            assert not model.weights.model.private_tensors
            (found,) = await opener.measure([model.weights])
            assert found is None or bool(found.packed_bytes) == bool(packed_bytes)
            model.check(plain, prompt(1))
            opener.allow_second_layout(model.weights, False)
            model.check(plain, prompt(2, LONG_PROMPT))


async def test_prompts_read_the_other_layout(
    model_path: Path, plain: PlainLoad, pantry: Pantry, packed_bytes: int
) -> None:
    with opener_over(pantry) as opener:
        async with served(opener, model_path) as model:
            model.weights.model.paged.choose = lambda tokens: "file" if tokens > 1 else "packed"
            model.check(plain, prompt(3, LONG_PROMPT))
            assert model.weights.model.layouts.shown == "packed"


async def test_while_it_is_packed(model_path: Path, plain: PlainLoad, pantry: Pantry) -> None:
    with opener_over(pantry) as opener:
        async with served(opener, model_path) as model:
            for seed in range(4):
                model.check(plain, prompt(seed))


async def test_after_its_pages_were_sent_away(
    model_path: Path, plain: PlainLoad, pantry: Pantry, packed_bytes: int
) -> None:
    with opener_over(pantry) as opener:
        async with served(opener, model_path) as model:
            model.check(plain, prompt(4))
            for seed, share in enumerate((2, 4, 0), 5):
                keep_bytes = model.weights.facts.working_bytes // share if share else 0
                await opener.page_out(model.weights, keep_bytes, [])
                opener.bring_back(model.weights)
                model.check(plain, prompt(seed, LONG_PROMPT))


async def test_streamed(model_path: Path, plain: PlainLoad, pantry: Pantry, packed_bytes: int) -> None:
    with opener_over(pantry) as opener:
        async with served(opener, model_path, limit_bytes=SMALL_BYTES) as model:
            assert model.weights.facts.working_bytes > 1.5 * SMALL_BYTES
            model.check(plain, prompt(8))
            await opener.set_resident_limit(model.weights, SMALL_BYTES // 2)
            model.check(plain, prompt(9, LONG_PROMPT))
            await opener.set_resident_limit(model.weights, None)
            model.check(plain, prompt(10))


async def test_parked_and_brought_back(
    model_path: Path, plain: PlainLoad, pantry: Pantry, packed_bytes: int, tmp_path: Path
) -> None:
    known = prompt(11, LONG_PROMPT)
    with opener_over(pantry, tmp_path / "parked") as opener:
        async with served(opener, model_path) as model:
            model.check(plain, known)
            assert await opener.park_instance(model.instance) > 0
            again = model.check(plain, [*known, *prompt(12)])
            assert again.finish.usage.cached_tokens >= LONG_PROMPT - 1
        async with served(opener, model_path) as model:
            reopened = model.check(plain, [*known, *prompt(13)])
            assert reopened.finish.usage.cached_tokens >= LONG_PROMPT - 1
    with opener_over(pantry, tmp_path / "parked") as opener:
        async with served(opener, model_path) as model:
            restarted = model.check(plain, [*known, *prompt(14)])
            assert restarted.finish.usage.cached_tokens >= LONG_PROMPT - 1


async def test_what_models_share_is_used_by_both(
    model_path: Path, fine_tune: Path, plain: PlainLoad, pantry: Pantry, fill: Callable[[Path], int]
) -> None:
    for path in (model_path, fine_tune):
        fill(path)
    with opener_over(pantry) as opener, closing(PlainLoad(fine_tune)) as plain_tune:
        async with served(opener, model_path) as model, served(opener, fine_tune) as tune:
            model.check(plain, prompt(15))
            tune.check(plain_tune, prompt(15))
            common = model.weights.facts.places.keys() & tune.weights.facts.places.keys()
            shared_bytes = sum(model.weights.facts.places[place] for place in common)
            assert shared_bytes > 0.5 * model.weights.facts.working_bytes
            # What one does not need leaves; what both use stays for the other.
            await opener.page_out(model.weights, 0, [tune.weights])
            tune.check(plain_tune, prompt(16))
            model.check(plain, prompt(17))
