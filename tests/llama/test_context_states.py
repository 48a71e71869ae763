"""Saving the KV of a slot, bringing it back, and giving the memory of an empty cache back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from copied_gguf import copy_model
from tiny_gguf import write_bert, write_llama
from tiny_states import WINDOW_TOKENS, write_recurrent, write_windowed

from shardload.config import KvType
from shardload.engine.runner import Run
from shardload.errors import HandleClosed, NativeError
from shardload.llama import Context, ContextParams, Model

PROMPT = [1, *(259 + number % 40 for number in range(60))]
Write = Callable[[Path], Path]


def opened(model: Model, **changes: object) -> Context:
    settings = {"ctx_tokens": 256, "slots": 4, "threads": 1, "threads_batch": 1, **changes}
    return Context(model, ContextParams(**settings))  # type: ignore[arg-type]


def read(context: Context, slot: int, tokens: list[int], start: int = 0) -> int:
    """Compute tokens in a slot; the likeliest next one."""
    assert context.decode([Run(slot, start, tokens, "last")])
    return int(context.logits(0).argmax())


def go_on(context: Context, slot: int, token: int, start: int, count: int = 12) -> list[int]:
    tokens = [token]
    while len(tokens) < count:
        tokens.append(read(context, slot, tokens[-1:], start + len(tokens) - 1))
    return tokens


@pytest.fixture(scope="module", params=[write_llama, write_windowed, write_recurrent])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    write: Write = request.param
    with Model.open([write(tmp_path_factory.mktemp("models") / "tiny.gguf")]) as model:
        yield model


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open([write_windowed(tmp_path_factory.mktemp("models") / "windowed.gguf")]) as model:
        yield model


def test_a_text_goes_on_in_another_slot_of_another_context(any_model: Model) -> None:
    with opened(any_model) as old, opened(any_model, ctx_tokens=512) as new:
        following = read(old, 1, PROMPT)
        state = old.save(1)
        assert len(state) == old.state_bytes(1) > 0
        expected = go_on(old, 1, following, len(PROMPT))
        assert new.state_kind == old.state_kind
        read(new, 0, PROMPT[:20])
        read(new, 2, PROMPT[:7])
        assert new.restore(2, state)
        assert go_on(new, 2, following, len(PROMPT)) == expected
        # The neighbour is what it was.
        assert read(new, 0, PROMPT[20:], 20) == following


def test_states_of_other_rope_factors_do_not_fit(tmp_path: Path) -> None:
    def add_factors(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(512)
        writer.add_tensor("rope_factors_short.weight", np.ones(8, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.linspace(2, 8, 8, dtype=np.float32))

    plain = write_llama(tmp_path / "plain.gguf", context=2048)
    path = copy_model(plain, tmp_path / "scaled.gguf", add_factors)
    kinds, states = {}, {}
    with Model.open([path]) as model:
        for ctx_tokens in (256, 512, 768, 1024):
            with opened(model, ctx_tokens=ctx_tokens) as context:
                read(context, 0, PROMPT)
                kinds[ctx_tokens], states[ctx_tokens] = context.state_kind, bytes(context.save(0))
        with opened(model, ctx_tokens=2048, kv_unified=False) as parts, opened(model, slots=1) as one:
            assert parts.state_kind == kinds[256].replace("1 streams", "4 streams")
            assert one.state_kind == kinds[256]
    assert states[256] == states[512] != states[768] == states[1024]
    assert kinds[256] == kinds[512] != kinds[768] == kinds[1024]


def test_saving_changes_nothing(any_model: Model) -> None:
    with opened(any_model) as context:
        following = read(context, 0, PROMPT)
        assert context.save(0) == context.save(0)
        first = go_on(context, 0, following, len(PROMPT))
        assert context.forget(0)
        read(context, 0, PROMPT)
        assert go_on(context, 0, following, len(PROMPT)) == first


def test_a_state_is_cut_where_the_model_can(any_model: Model) -> None:
    with opened(any_model) as context:
        following = read(context, 0, PROMPT)
        state = context.save(0)
        assert context.restore(1, state)
        # Nothing is cut off: it can be gone on from, whatever it is.
        assert context.forget(1, len(PROMPT))
        assert context.forget(1, 40) == (any_model.architecture == "llama")
        if any_model.architecture == "llama":
            assert read(context, 1, PROMPT[40:], 40) == following


def test_layers_with_a_window_can_be_cut_until_they_are_saved(windowed: Model) -> None:
    with opened(windowed) as context:
        following = read(context, 0, PROMPT)
        assert context.forget(0, WINDOW_TOKENS + 10)
        assert read(context, 0, PROMPT[WINDOW_TOKENS + 10 :], WINDOW_TOKENS + 10) == following
        assert context.restore(1, context.save(0))
        # What a window does not see any more was not saved, and is missed by a shorter text.
        context.share(1, 2, 40)
        assert not context.forget(2, 40)
        assert not context.forget(1, 40)
        context.forget(2)
        context.share(1, 2, len(PROMPT))
        assert context.forget(2, len(PROMPT))
        assert go_on(context, 2, following, len(PROMPT)) == go_on(context, 0, following, len(PROMPT))


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_quantised_states(tmp_path: Path, kv_type: KvType) -> None:
    with (
        Model.open([write_llama(tmp_path / "wide.gguf", dim=128)]) as model,
        opened(model, kv_type=kv_type) as context,
        opened(model) as plain,
    ):
        following = read(context, 0, PROMPT)
        state = context.save(0)
        expected = go_on(context, 0, following, len(PROMPT))
        assert context.restore(3, state)
        assert go_on(context, 3, following, len(PROMPT)) == expected
        assert plain.state_kind != context.state_kind
        assert not plain.restore(0, state)
        assert read(plain, 0, PROMPT[:3]) >= 0


def test_what_does_not_fit_leaves_an_empty_slot(any_model: Model) -> None:
    with opened(any_model) as context, opened(any_model, ctx_tokens=256) as full:
        read(context, 0, PROMPT)
        state = context.save(0)
        for wrong in (state[:-1], memoryview(bytes(100)), memoryview(b"")):
            assert full.forget(0)
            read(full, 0, PROMPT[:5])
            assert not full.restore(0, wrong)
            assert full._lib.llama_memory_seq_pos_max(full._memory, 0) == -1
        if any_model.architecture == "mamba":
            return
        for slot in range(3):
            read(full, slot, PROMPT + PROMPT[:20])
        assert not full.restore(3, state)
        assert full._lib.llama_memory_seq_pos_max(full._memory, 3) == -1


def test_a_context_without_memory(tmp_path: Path) -> None:
    with Model.open([write_bert(tmp_path / "bert.gguf")]) as model, opened(model, embeddings=True) as context:
        assert context.state_bytes(0) == 0
        assert not context.restore(0, memoryview(b"state"))
        assert context.give_back() == 0
        with pytest.raises(NativeError, match="slot 0"):
            context.save(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the memory stays")
def test_the_memory_of_an_empty_cache_is_given_back(any_model: Model) -> None:
    with opened(any_model, ctx_tokens=4096) as context:
        following = read(context, 0, PROMPT)
        expected = go_on(context, 0, following, len(PROMPT))
        state = context.save(0)
        assert context.give_back() == 0, "something is in it"
        assert context.forget(0)
        before = context.kv_resident_bytes
        given = context.give_back()
        assert context.kv_resident_bytes == before - given
        # A cache takes memory as it is used; a state of fixed size is used as a whole.
        assert given > 0 or any_model.architecture == "mamba"
        assert context.give_back() == 0
        assert read(context, 1, PROMPT) == following
        assert go_on(context, 1, following, len(PROMPT)) == expected
        assert context.restore(2, state)
        # The cells of another slot are on other pages, how many depends on where the cache begins; the rest
        # of it stays without memory.
        assert context.kv_resident_bytes <= before + 2**16


def test_after_close(any_model: Model) -> None:
    context = opened(any_model)
    read(context, 0, PROMPT)
    state = context.save(0)
    context.close()
    for action in (
        lambda: context.save(0),
        lambda: context.state_bytes(0),
        lambda: context.restore(0, state),
        context.give_back,
        lambda: context.kv_resident_bytes,
    ):
        with pytest.raises(HandleClosed):
            action()
    assert state[:4] != bytes(4), "the copy is nobody's but ours"
