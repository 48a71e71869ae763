"""In which numbers a context keeps its keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_bert, write_llama

from shardload.config import KvType
from shardload.engine.runner import Run
from shardload.errors import LoadFailed
from shardload.llama import Context, ContextParams, Model, context

PROMPT = [1, 260, 262, 270, 271, 265]
TOLD_BYTES = 2**20 // 100
"""llama.cpp tells sizes in hundredths of a MiB."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Heads of 32 values: a block of each type."""
    with Model.open([write_llama(tmp_path_factory.mktemp("models") / "wide.gguf", dim=128)]) as model:
        yield model


def opened(model: Model, kv_type: KvType, **changes: object) -> Context:
    settings = {"ctx_tokens": 256, "threads": 1, "threads_batch": 1, "kv_type": kv_type, **changes}
    return Context(model, ContextParams(**settings))  # type: ignore[arg-type]


def test_blocks_are_smaller(wide_model: Model) -> None:
    sizes: dict[str, int] = {}
    logits = {}
    kv_type: KvType
    for kv_type in ("f16", "q8_0", "q4_0"):
        with opened(wide_model, kv_type) as one:
            sizes[kv_type] = one.kv_bytes
            assert one.decode([Run(0, 0, PROMPT, "last")])
            logits[kv_type] = one.logits(0).copy()
    # Two layers of 256 cells, two heads of 32 values for keys and as many for values.
    blocks = 2 * 256 * 2 * 2
    exactly = {"f16": 64 * blocks, "q8_0": 34 * blocks, "q4_0": 18 * blocks}
    assert sizes == pytest.approx(exactly, abs=TOLD_BYTES)
    off = {kv_type: np.abs(found - logits["f16"]).max() for kv_type, found in logits.items()}
    assert 0 < off["q8_0"] < off["q4_0"] < 0.2 * np.abs(logits["f16"]).max()


def test_heads_that_blocks_do_not_fit(model: Model) -> None:
    with pytest.raises(LoadFailed, match=r"the KV type q4_0 does not fit this model, use f16: .*_head_k=16"):
        opened(model, "q4_0")
    opened(model, "f16").close()


def test_no_flash_attention(wide_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "FLASH_ATTENTION_AUTO", 0)
    with pytest.raises(LoadFailed, match=r"KV type q8_0 .* requires flash_attn"):
        opened(wide_model, "q8_0")
    opened(wide_model, "f16").close()


def test_embeddings_keep_f16(tmp_path: Path, wide_model: Model) -> None:
    with (
        opened(wide_model, "q8_0", embeddings=True) as one,
        opened(wide_model, "f16", embeddings=True) as f16,
    ):
        assert one.kv_bytes == f16.kv_bytes > 0
    with (
        Model.open([write_bert(tmp_path / "bert.gguf")]) as bert,
        opened(bert, "q8_0", embeddings=True) as one,
    ):
        assert one.decode([Run(0, 0, [1, 2, 3], "none")])
