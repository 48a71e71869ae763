from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardload.gguf import GGUFFile
from shardload.library.estimate import (
    MemoryShape,
    compute_bytes,
    kv_bytes,
    memory_shape,
    predict,
    vocabulary_bytes,
)

Make = Callable[..., Path]


def shape(make_model: Make, **values: Any) -> MemoryShape:
    with GGUFFile(make_model("m.gguf", **values)) as gguf:
        return memory_shape(gguf)


def test_grouped_query_attention(make_model: Make) -> None:
    found = shape(make_model)
    # 2 blocks of 2 KV heads, 64 / 4 numbers for a key and for a value each, 2 bytes per number
    assert found.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert (found.embedding_length, found.feed_forward_length, found.vocabulary_tokens) == (64, 128, 3)
    assert found.weights_bytes == 3 * 64 * 4


def test_own_key_and_value_lengths(make_model: Make) -> None:
    found = shape(make_model, llama__attention__key_length=32, llama__attention__value_length=8)
    assert found.kv_bytes_per_token == 2 * 2 * (32 + 8) * 2


def test_heads_differ_by_block(make_model: Make) -> None:
    found = shape(make_model, blocks=4, llama__attention__head_count_kv=[1, 2, 0, 4])
    assert found.kv_bytes_per_token == (1 + 2 + 0 + 4) * 32 * 2


def test_encoders_have_no_cache(make_model: Make) -> None:
    assert shape(make_model, architecture="bert").kv_bytes_per_token == 0
    assert shape(make_model, llama__attention__causal=False).kv_bytes_per_token == 0


def test_recurrent_layers_have_states(make_model: Make) -> None:
    keys = {
        "ssm__conv_kernel": 4,
        "ssm__inner_size": 128,
        "ssm__state_size": 16,
        "attention__head_count_kv": [2, 0],
    }
    found = shape(make_model, architecture="jamba", **{f"jamba__{key}": value for key, value in keys.items()})
    assert found.kv_bytes_per_token == 2 * 32 * 2
    assert found.state_bytes_per_slot == 4 * (3 * 128 + 128 * 16)
    assert kv_bytes(found, 256, 3) == 256 * 128 + 3 * found.state_bytes_per_slot


def test_mamba_has_states_only(make_model: Make) -> None:
    keys = {
        "ssm__conv_kernel": 4,
        "ssm__inner_size": 128,
        "ssm__state_size": 16,
        "attention__head_count_kv": 0,
    }
    keys["attention__head_count"] = 0
    found = shape(make_model, architecture="mamba", **{f"mamba__{key}": value for key, value in keys.items()})
    assert found.kv_bytes_per_token == 0
    assert found.state_bytes_per_slot == 2 * 4 * (3 * 128 + 128 * 16)


def test_rwkv_has_states_only(make_model: Make) -> None:
    keys = {"wkv__head_size": 32, "attention__head_count": 0, "attention__head_count_kv": 0}
    found = shape(make_model, architecture="rwkv7", **{f"rwkv7__{key}": value for key, value in keys.items()})
    assert found.state_bytes_per_slot == 2 * 4 * 64 * (2 + 32)


@pytest.mark.parametrize(("ctx_tokens", "cells"), [(1, 256), (256, 256), (257, 512), (4096, 4096)])
def test_cells_are_padded(ctx_tokens: int, cells: int) -> None:
    assert kv_bytes(MemoryShape(kv_bytes_per_token=10), ctx_tokens) == 10 * cells


def test_a_real_size(make_model: Make) -> None:
    """TinyLlama 1.1B at 2048 tokens: 22 blocks, 4 KV heads of 64, and so 44 MiB."""
    keys = {
        "embedding_length": 2048,
        "attention__head_count": 32,
        "attention__head_count_kv": 4,
        "feed_forward_length": 5632,
    }
    found = shape(make_model, blocks=22, **{f"llama__{key}": value for key, value in keys.items()})
    assert kv_bytes(found, 2048) == 44 * 2**20


def test_quantised_caches_are_smaller() -> None:
    found = MemoryShape(kv_bytes_per_token=2 * 64, state_bytes_per_slot=7)
    assert kv_bytes(found, 256, 2, "q8_0") == 256 * 2 * 34 + 2 * 7
    assert kv_bytes(found, 256, 2, "q4_0") == 256 * 2 * 18 + 2 * 7
    assert predict(found, 256, 2, kv_type="q4_0").kv_bytes == 256 * 2 * 18 + 2 * 7
    # A context for embeddings keeps nothing from one request to the next.
    assert predict(found, 256, 2, whole_batch=True, kv_type="q4_0").kv_bytes == 256 * 128 + 2 * 7


def test_nonsense_counts_as_nothing(make_model: Make) -> None:
    found = shape(make_model, llama__block_count="many", llama__attention__head_count_kv="all")
    assert found.kv_bytes_per_token == 0
    assert predict(found, 512, 4).kv_bytes == 0


def test_prediction_is_the_sum() -> None:
    found = MemoryShape(1000, 10, 0, 64, 128, 32000, 30000)
    prediction = predict(found, 512, 2)
    assert prediction.weights_bytes == 1000
    parts = (vocabulary_bytes(found), kv_bytes(found, 512, 2), compute_bytes(found, 512, 2))
    assert prediction.private_bytes == sum(parts)
    assert compute_bytes(found, 512, 8) > compute_bytes(found, 512, 2)
    assert compute_bytes(found, 4096, 2) > compute_bytes(found, 512, 2)


@pytest.mark.parametrize(
    ("ctx_tokens", "slots", "batch_tokens", "whole_batch", "mebibytes"),
    [
        (512, 1, 512, False, 49.6),
        (2048, 4, 512, False, 51.5),
        (8192, 4, 512, False, 57.5),
        (2048, 4, 64, False, 6.9),
        (2048, 4, 2048, True, 306.6),
    ],
)
def test_compute_bytes_as_measured(
    ctx_tokens: int, slots: int, batch_tokens: int, whole_batch: bool, mebibytes: float
) -> None:
    """What llama.cpp reports for the shape of TinyLlama 1.1B."""
    found = MemoryShape(
        kv_bytes_per_token=22528, embedding_length=2048, feed_forward_length=5632, vocabulary_tokens=32000
    )
    estimate = compute_bytes(found, ctx_tokens, slots, batch_tokens=batch_tokens, whole_batch=whole_batch)
    assert estimate / 2**20 == pytest.approx(mebibytes, rel=0.1)
