"""Writes small models whose memory of a text is not a plain KV cache.

``from tiny_states import write_windowed, write_recurrent`` works in every test file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tiny_gguf import finish, sentence_piece

DIM, HIDDEN, INNER, STATE, RANK, KERNEL = 32, 64, 64, 8, 4, 4
WINDOW_TOKENS = 16


class _Writer:
    """A model file with the vocabulary of the tests."""

    def __init__(self, path: Path, architecture: str, seed: int) -> None:
        self.path, self.rng = path, np.random.default_rng(seed)
        tokens = sentence_piece()
        self.gguf = writer = gguf.GGUFWriter(str(path), architecture)
        writer.add_context_length(1024)
        writer.add_embedding_length(DIM)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([text for text, _, _ in tokens])
        writer.add_token_scores([score for _, score, _ in tokens])
        writer.add_token_types([kind for _, _, kind in tokens])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        self.random("token_embd.weight", len(tokens), DIM, scale=1.0)
        self.random("output.weight", len(tokens), DIM, scale=0.5)
        self.ones("output_norm.weight", DIM)

    def random(self, name: str, *shape: int, scale: float | None = None) -> None:
        scale = shape[-1] ** -0.5 if scale is None else scale
        self.gguf.add_tensor(name, self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    def ones(self, name: str, count: int) -> None:
        self.gguf.add_tensor(name, np.ones(count, np.float32))

    def finish(self) -> Path:
        finish(self.gguf)
        return self.path


def write_windowed(path: Path, *, seed: int = 5) -> Path:
    """A model of four layers, three of which see a window of 16 tokens only."""
    writer = _Writer(path, "olmo2", seed)
    writer.gguf.add_block_count(4)
    writer.gguf.add_feed_forward_length(HIDDEN)
    writer.gguf.add_head_count(2)
    writer.gguf.add_head_count_kv(2)
    writer.gguf.add_sliding_window(WINDOW_TOKENS)
    for layer in range(4):
        block = f"blk.{layer}."
        for norm in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"):
            writer.ones(f"{block}{norm}.weight", DIM)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.random(f"{block}{matrix}.weight", DIM, DIM)
        for matrix in ("ffn_gate", "ffn_up"):
            writer.random(f"{block}{matrix}.weight", HIDDEN, DIM)
        writer.random(f"{block}ffn_down.weight", DIM, HIDDEN)
    return writer.finish()


def write_recurrent(path: Path, *, seed: int = 5) -> Path:
    """A Mamba of two layers: one state for all that was read."""
    writer = _Writer(path, "mamba", seed)
    writer.gguf.add_block_count(2)
    writer.gguf.add_feed_forward_length(0)
    writer.gguf.add_head_count(0)
    writer.gguf.add_ssm_conv_kernel(KERNEL)
    writer.gguf.add_ssm_inner_size(INNER)
    writer.gguf.add_ssm_state_size(STATE)
    writer.gguf.add_ssm_time_step_rank(RANK)
    for layer in range(2):
        block = f"blk.{layer}."
        writer.ones(f"{block}attn_norm.weight", DIM)
        writer.random(f"{block}ssm_in.weight", 2 * INNER, DIM)
        writer.random(f"{block}ssm_conv1d.weight", INNER, KERNEL)
        writer.random(f"{block}ssm_conv1d.bias", INNER)
        writer.random(f"{block}ssm_x.weight", RANK + 2 * STATE, INNER)
        writer.random(f"{block}ssm_dt.weight", INNER, RANK)
        writer.random(f"{block}ssm_dt.bias", INNER)
        writer.gguf.add_tensor(
            f"{block}ssm_a", -np.exp(writer.rng.standard_normal((INNER, STATE), np.float32))
        )
        writer.ones(f"{block}ssm_d", INNER)
        writer.random(f"{block}ssm_out.weight", DIM, INNER)
    return writer.finish()
