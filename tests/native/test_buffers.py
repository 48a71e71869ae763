"""Where llama.cpp keeps the KV of a context."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_gguf import write_llama

from shardload.errors import LoadFailed
from shardload.llama import Context, ContextParams, Model
from shardload_native import buffers, slots
from shardload_native.got import SlotsNotFound

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these slots")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open([write_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")]) as model:
        yield model


def opened(model: Model) -> Context:
    return Context(model, ContextParams(ctx_tokens=512, threads=1, threads_batch=1))


@pytest.fixture
def _no_slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    buffers._search_once.cache_clear()
    yield
    buffers._search_once.cache_clear()


def test_the_cache_of_a_context_is_seen(model: Model) -> None:
    with buffers.recorded_buffers() as inner:
        pass
    assert inner == []
    with opened(model) as context:
        (place,) = context._kv_ranges
        # llama.cpp tells the size in hundredths of a MiB.
        assert place.length == pytest.approx(context.kv_bytes, abs=2**20 // 100)


def test_the_slots_are_as_before(model: Model) -> None:
    hook = buffers._hook()
    assert hook is not None
    read = hook._slots.read
    every = [slot for found in hook._slots.addresses.values() for slot in found]
    before = [read(slot) for slot in every]
    with buffers.recorded_buffers():
        assert not {read(slot) for slot in every} & set(before)
    assert [read(slot) for slot in every] == before
    with pytest.raises(LoadFailed):
        Context(model, ContextParams(ctx_tokens=256, slots=100_000, threads=1, threads_batch=1))
    assert [read(slot) for slot in every] == before


def test_contexts_of_other_threads_are_not_noted(model: Model) -> None:
    ranges = []

    def open_another() -> None:
        # Not through a Context: that one waits until the recording here is over.
        native = model.llama.lib.llama_context_default_params()
        native.n_ctx = 256
        pointer = model.llama.lib.llama_init_from_model(model.weights, native)
        ranges.append(pointer != model.llama.ffi.NULL)
        model.llama.lib.llama_free(pointer)

    with buffers.recorded_buffers() as noted:
        thread = threading.Thread(target=open_another)
        thread.start()
        thread.join(30)
    assert (ranges, noted) == ([True], [])


@pytest.mark.parametrize("missing", ["no symbol", "no library"])
@pytest.mark.usefixtures("_no_slots")
def test_without_slots_nothing_is_given_back(
    model: Model, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def find(library: Path, symbols: tuple[str, ...]) -> dict[str, list[int]]:
        if missing == "no library":
            raise SlotsNotFound("no library")
        return {symbol: [] for symbol in symbols}

    monkeypatch.setattr(slots, "find_slots", find)
    with opened(model) as context:
        assert context.give_back() == 0
        assert context.kv_resident_bytes == context.kv_bytes


def test_a_cache_is_no_memory_before_it_is_used_and_all_zeros(model: Model) -> None:
    with Context(model, ContextParams(ctx_tokens=8192, threads=1, threads_batch=1)) as context:
        assert context.kv_resident_bytes < 0.2 * context.kv_bytes
        for place in context._kv_ranges:
            assert not any(ctypes.string_at(place.address, place.length))


@pytest.mark.usefixtures("_no_slots")
def test_a_slot_that_holds_no_function_is_left_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    number = model.llama.ffi.new("uintptr_t *", 12345)
    address = int(model.llama.ffi.cast("uintptr_t", number))
    monkeypatch.setattr(slots, "find_slots", lambda _, symbols: {name: [address] for name in symbols})
    with opened(model) as context:
        assert context.give_back() == 0
    assert number[0] == 12345
