#!/usr/bin/env python3
"""Write a llama-architecture GGUF of a chosen size with random weights, to measure speed and memory with.

    .venv/bin/python tools/make_model.py OUT.gguf --dim 2048 --layers 22 --heads 32 --kv-heads 4 --ff 5632

The defaults are 1.1B parameters in Q8_0. Speed does not depend on what weights say; the vocabulary is made
up as well, in SentencePiece form with byte tokens, so that nothing has to be downloaded. Random weights
speak gibberish and rarely end: ask for a fixed number of tokens with ``ignore_eos``.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwz", "aeiou"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
FILE_TYPES = {
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "F32": gguf.LlamaFileType.ALL_F32,
}


@dataclass(frozen=True, slots=True)
class Size:
    """The dimensions of a model; ``vocabulary`` in tokens."""

    dim: int = 2048
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4
    ff: int = 5632
    vocabulary: int = 32000
    ctx_tokens: int = 4096


def vocabulary(size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores, types: three control tokens, all bytes, then syllables joined to ever longer words."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{value:02X}>".encode() for value in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *([BYTE] * 256)]
    if size < len(tokens):
        raise SystemExit(f"a vocabulary has at least {len(tokens)} tokens: raise --vocabulary")
    words = itertools.islice(_words(), size - len(tokens))
    tokens += [word.encode() for word in words]
    types += [NORMAL] * (size - len(types))
    # A merge needs both halves in the vocabulary; earlier, shorter words score higher and merge first.
    scores = [0.0] * 259 + [-float(rank) for rank in range(size - 259)]
    return tokens, scores, types


def _words() -> itertools.chain[str]:
    """Single characters, then syllables, then words of two and three syllables, with and without a space."""
    letters = CONSONANTS + VOWELS
    syllables = [a + b for a in CONSONANTS for b in VOWELS]
    pairs = [a + b for a in syllables for b in syllables]
    single = ["\u2581", *letters, *letters.upper(), *"0123456789.,:;!?'\"()-\n"]
    triples = (pair + syllable for pair in pairs for syllable in syllables)
    spaced = ["\u2581" + letter for letter in letters] + ["\u2581" + syllable for syllable in syllables]
    return itertools.chain(single, syllables, spaced, pairs, ("\u2581" + pair for pair in pairs), triples)


def random_rows(
    rng: np.random.Generator, rows: int, columns: int, deviation: float, kind: str
) -> npt.NDArray[np.generic]:
    """Random weights in the bytes of tensor type ``kind``, made block by block without quantising floats."""
    if kind in ("F16", "F32"):
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * deviation
        return weights.astype(np.float16) if kind == "F16" else weights
    elements, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, size=(rows * columns // elements, size_bytes), dtype=np.uint8)
    if kind == "Q8_0":
        _set_half(blocks, 0, deviation * 3**0.5 / 127)
    elif kind == "Q4_0":
        _set_half(blocks, 0, deviation / 4.6)
    elif kind == "Q4_K":
        _set_half(blocks, 0, deviation / 4.6 / 32)
        _set_half(blocks, 2, deviation * 7.5 / 4.6 / 32)
        blocks[:, 4:16] = 32
    return blocks.reshape(rows, columns // elements * size_bytes)


def _set_half(blocks: npt.NDArray[np.uint8], offset: int, value: float) -> None:
    blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)


def tensors(size: Size) -> list[tuple[str, int, int]]:
    """Name, rows and columns of every tensor; one row is a norm and stays F32."""
    kv_columns = size.dim // size.heads * size.kv_heads
    shapes = [("token_embd", size.vocabulary, size.dim)]
    for index in range(size.layers):
        block = f"blk.{index}."
        shapes += [
            (block + "attn_norm", 1, size.dim),
            (block + "attn_q", size.dim, size.dim),
            (block + "attn_k", kv_columns, size.dim),
            (block + "attn_v", kv_columns, size.dim),
            (block + "attn_output", size.dim, size.dim),
            (block + "ffn_norm", 1, size.dim),
            (block + "ffn_gate", size.ff, size.dim),
            (block + "ffn_up", size.ff, size.dim),
            (block + "ffn_down", size.dim, size.ff),
        ]
    return [*shapes, ("output_norm", 1, size.dim), ("output", size.vocabulary, size.dim)]


def write_model(path: Path, size: Size = Size(), *, kind: str = "Q8_0", seed: int = 1) -> None:
    """Write the model; the file appears under its name only when it is whole."""
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_metadata(writer, path.stem, size, kind)
    _add_tensors(writer, size, kind, seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def write_hollow_model(path: Path, size: Size, *, kind: str = "Q8_0") -> None:
    """Write the header alone; the weights are a hole of their size that takes no room on the disk."""
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_metadata(writer, path.stem, size, kind)
    end_bytes = 0
    for name, rows, columns in tensors(size):
        norm = rows == 1
        stored = gguf.GGMLQuantizationType.F32 if norm else gguf.GGMLQuantizationType[kind]
        elements, block_bytes = gguf.GGML_QUANT_SIZES[stored]
        row_bytes = columns // elements * block_bytes
        shape = (columns,) if norm else (rows, row_bytes)
        element = np.dtype(np.float32 if norm else np.uint8)
        writer.add_tensor_info(f"{name}.weight", shape, element, rows * row_bytes, raw_dtype=stored)
        end_bytes += gguf.GGUFWriter.ggml_pad(rows * row_bytes, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = gguf.GGUFWriter.ggml_pad(unfinished.stat().st_size, writer.data_alignment)
    with unfinished.open("r+b") as file:
        file.truncate(header_bytes + end_bytes)
    unfinished.replace(path)


def _add_metadata(writer: gguf.GGUFWriter, name: str, size: Size, kind: str) -> None:
    writer.add_name(name)
    writer.add_context_length(size.ctx_tokens)
    writer.add_embedding_length(size.dim)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.ff)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size.dim // size.heads)
    writer.add_file_type(FILE_TYPES[kind])
    tokens, scores, types = vocabulary(size.vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(writer: gguf.GGUFWriter, size: Size, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, rows, columns in tensors(size):
        if rows == 1:
            writer.add_tensor(f"{name}.weight", np.ones(columns, np.float32))
            continue
        deviation = 1.0 if name == "token_embd" else 0.7 / columns**0.5
        data = random_rows(rng, rows, columns, deviation, kind)
        raw = None if kind in ("F16", "F32") else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", data, raw_dtype=raw)


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    for name in Size.__dataclass_fields__:
        default = getattr(Size(), name)
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, metavar="N")
    parser.add_argument("--type", choices=tuple(FILE_TYPES), default="Q8_0")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    arguments = vars(parser.parse_args())
    out, kind, seed = arguments.pop("out"), arguments.pop("type"), arguments.pop("seed")
    write_model(out, Size(**arguments), kind=kind, seed=seed)


if __name__ == "__main__":
    main()
