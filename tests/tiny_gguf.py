"""Writes small models with random weights for the tests that run llama.cpp.

``from tiny_gguf import write_llama, write_bert, finish`` works in every test file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

UNKNOWN, NORMAL, CONTROL, BYTE = 2, 1, 3, 6
SPACE = "\u2581"
LETTERS = "abcdefghijklmnopqrstuvwxyzT.,!?"
WORDS = ("he", "in", "er", "an", "th", f"{SPACE}t", f"{SPACE}a", f"{SPACE}the", f"{SPACE}and", "ing", "end")


def sentence_piece(
    *, byte_tokens: bool = True, special: tuple[str, ...] = ()
) -> list[tuple[str, float, int]]:
    """(text, score, kind) of a small SentencePiece vocabulary; token 1 begins and token 2 ends."""
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(text, 0.0, CONTROL) for text in special]
    if byte_tokens:
        tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [(word, -float(at), NORMAL) for at, word in enumerate(WORDS)]
    return tokens + [(letter, -1000.0 - at, NORMAL) for at, letter in enumerate(SPACE + LETTERS)]


def byte_pairs() -> list[tuple[str, float, int]]:
    """(text, score, kind) of a byte-pair vocabulary: all bytes in GPT-2's alphabet, and "the"."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + at) for at in range(256 - len(printable))]
    special = [(text, 0.0, CONTROL) for text in ("<unk>", "<s>", "</s>")]
    return special + [(text, 0.0, NORMAL) for text in [*alphabet, "th", "the"]]


def write_llama(
    path: Path,
    *,
    tokens: list[tuple[str, float, int]] | None = None,
    dim: int = 64,
    layers: int = 2,
    hidden: int = 128,
    context: int = 512,
    seed: int = 7,
    architecture: str = "llama",
    quantised: gguf.GGMLQuantizationType | None = None,
    add_bos: bool = True,
    splitting: str | None = None,
) -> Path:
    """A llama-architecture model of random weights.

    ``quantised`` is a type for its matrices; ``splitting`` names a way to split text into words, and makes
    the vocabulary one of byte pairs.
    """
    if splitting is not None:
        tokens = byte_pairs()
    tokens = tokens if tokens is not None else sentence_piece()
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // 4)
    writer.add_tokenizer_model("gpt2" if splitting else "llama")
    if splitting is not None:
        writer.add_tokenizer_pre(splitting)
        writer.add_token_merges(["t h", "th e"])
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)

    def matrix(name: str, rows: int, columns: int, scale: float | None = None) -> None:
        scale = scale if scale is not None else columns**-0.5
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)
        if quantised is None:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weights, quantised), raw_dtype=quantised)

    matrix("token_embd.weight", len(tokens), dim, 1.0)
    matrix("output.weight", len(tokens), dim, 0.5)
    writer.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(dim, np.float32))
        matrix(f"{block}attn_q.weight", dim, dim)
        matrix(f"{block}attn_k.weight", dim // 2, dim)
        matrix(f"{block}attn_v.weight", dim // 2, dim)
        matrix(f"{block}attn_output.weight", dim, dim)
        matrix(f"{block}ffn_gate.weight", hidden, dim)
        matrix(f"{block}ffn_up.weight", hidden, dim)
        matrix(f"{block}ffn_down.weight", dim, hidden)
    finish(writer)
    return path


def write_bert(path: Path, *, dim: int = 32, hidden: int = 64, context: int = 100, pooling: int = 1) -> Path:
    """An encoder of one layer with a WordPiece vocabulary; ``pooling`` 1 is mean, 2 is the first token."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *(SPACE + word for word in ("the", "dog", "cat", "ran", ".")),
    ]
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("bert")
    writer.add_token_list(words)
    writer.add_token_types([CONTROL if word.startswith("[") else NORMAL for word in words])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_unk_token_id(1)
    shapes = {
        "token_embd.weight": (len(words), dim),
        "token_types.weight": (2, dim),
        "position_embd.weight": (context, dim),
        "token_embd_norm.weight": (dim,),
        "token_embd_norm.bias": (dim,),
        "blk.0.attn_output_norm.weight": (dim,),
        "blk.0.attn_output_norm.bias": (dim,),
        "blk.0.layer_output_norm.weight": (dim,),
        "blk.0.layer_output_norm.bias": (dim,),
        "blk.0.ffn_up.weight": (hidden, dim),
        "blk.0.ffn_up.bias": (hidden,),
        "blk.0.ffn_down.weight": (dim, hidden),
        "blk.0.ffn_down.bias": (dim,),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes |= {f"blk.0.{name}.weight": (dim, dim), f"blk.0.{name}.bias": (dim,)}
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        writer.add_tensor(name, weights + np.float32("norm.weight" in name))
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write all that a writer was given, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
