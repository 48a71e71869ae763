#!/usr/bin/env python3
"""Write a llama-architecture GGUF of a chosen size with random weights, to measure speed and memory with.

    .venv/bin/python tools/make_model.py OUT.gguf --dim 2048 --layers 22 --heads 32 --kv-heads 4 --ff 5632
    .venv/bin/python tools/make_model.py OUT.gguf --type MXFP4 --experts 8 --experts-used 2
    .venv/bin/python tools/make_model.py OUT.gguf --like BASE.gguf --change 0.2

The defaults are 1.1B parameters in Q8_0. Speed does not depend on what weights say; the vocabulary is made
up as well, in SentencePiece form with byte tokens, so that nothing has to be downloaded. Random weights
speak gibberish and rarely end: ask for a fixed number of tokens with ``ignore_eos``.

``--like`` makes a fine-tune: another name, and new weights for a share of the bytes (attention first, as
most fine-tunes do it); what it leaves alone is the base's to the last bit. ``--change 0`` changes the
metadata only.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwz", "aeiou"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
EXACT = (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32)
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
FILE_TYPES = {
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "Q2_K": gguf.LlamaFileType.MOSTLY_Q2_K,
    "IQ4_NL": gguf.LlamaFileType.MOSTLY_IQ4_NL,
    "MXFP4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "F32": gguf.LlamaFileType.ALL_F32,
}
# What a fine-tune changes, in this order, until it has changed enough.
TUNED = (
    "attn_q",
    "attn_v",
    "attn_k",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "output",
    "token_embd",
)


@dataclass(frozen=True, slots=True)
class Size:
    """The dimensions of a model; ``vocabulary`` in tokens. With ``experts`` it is a mixture of them."""

    dim: int = 2048
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4
    ff: int = 5632
    vocabulary: int = 32000
    ctx_tokens: int = 4096
    experts: int = 0
    experts_used: int = 2


@dataclass(frozen=True, slots=True)
class Tensor:
    """A matrix, one for each expert, or a norm, which has one row."""

    name: str
    rows: int
    columns: int
    experts: int = 0

    def stored(self, kind: str) -> str:
        """Its type in a model of ``kind``: norms and the choice of experts stay exact."""
        return "F32" if self.rows == 1 or self.name.endswith("ffn_gate_inp") else kind

    @property
    def deviation(self) -> float:
        """The deviation of its weights, with which activations neither grow nor vanish.

        Experts are chosen clearly, as trained models do it: near ties would be decided by rounding.
        """
        if self.name.endswith("ffn_gate_inp"):
            return 6.0 / math.sqrt(self.columns)
        return 1.0 if self.name == "token_embd" else 0.7 / math.sqrt(self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, the last one first in memory."""
        experts = (self.experts,) if self.experts else ()
        return (self.columns,) if self.rows == 1 else (*experts, self.rows, self.columns)


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
    # Every block has a scale of its own; the divisors are the deviations of evenly spread quants.
    scale = deviation * (0.75 + blocks[:, :1] / 512)
    if kind == "Q8_0":
        blocks[:, :2] = _halves(scale * 3**0.5 / 127)
    elif kind == "Q4_0":
        blocks[:, :2] = _halves(scale / 4.6)
    elif kind == "Q4_K":
        # Eight scales and eight minima of 6 bits, 32 to 47: their upper bits, and then the others'.
        blocks[:, 4:12] = 0xA0 | blocks[:, 4:12] & 0x0F
        blocks[:, :2] = _halves(scale / 4.6 / 39.5)
        blocks[:, 2:4] = _halves(scale * 7.5 / 4.6 / 39.5)
    elif kind == "Q2_K":
        # Sixteen scales of 8 or 9 and minima of 12 to 15, for quants of 0 to 3.
        blocks[:, :16] = 0xC8 | blocks[:, :16] & 0x31
        blocks[:, 80:84] = np.tile(_halves(scale / 1.118 / 8.5), 2)
    elif kind == "IQ4_NL":
        blocks[:, :2] = _halves(scale / 70.9)
    elif kind == "MXFP4":
        exponent = math.log2(deviation / 2.93)
        blocks[:, 0] = 127 + np.round(exponent - 0.5 + blocks[:, 0] / 256)
    return blocks.reshape(rows, columns // elements * size_bytes)


def _halves(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The bytes of a column of numbers in half precision."""
    return values.astype("<f2").view(np.uint8)


def tensors(size: Size) -> list[Tensor]:
    """Every tensor of a model, in the order of computation."""
    kv_columns = size.dim // size.heads * size.kv_heads
    found = [Tensor("token_embd", size.vocabulary, size.dim)]
    for index in range(size.layers):
        block = f"blk.{index}."
        found += [
            Tensor(block + "attn_norm", 1, size.dim),
            Tensor(block + "attn_q", size.dim, size.dim),
            Tensor(block + "attn_k", kv_columns, size.dim),
            Tensor(block + "attn_v", kv_columns, size.dim),
            Tensor(block + "attn_output", size.dim, size.dim),
            Tensor(block + "ffn_norm", 1, size.dim),
        ]
        found += [Tensor(block + "ffn_gate_inp", size.experts, size.dim)] if size.experts else []
        ending = "_exps" if size.experts else ""
        found += [
            Tensor(block + "ffn_gate" + ending, size.ff, size.dim, size.experts),
            Tensor(block + "ffn_up" + ending, size.ff, size.dim, size.experts),
            Tensor(block + "ffn_down" + ending, size.dim, size.ff, size.experts),
        ]
    return [*found, Tensor("output_norm", 1, size.dim), Tensor("output", size.vocabulary, size.dim)]


def random_tensor(rng: np.random.Generator, tensor: Tensor, kind: str) -> npt.NDArray[np.generic]:
    """A tensor's bytes: ones for a norm, else random weights."""
    if tensor.rows == 1:
        return np.ones(tensor.columns, np.float32)
    rows = tensor.rows * max(1, tensor.experts)
    data = random_rows(rng, rows, tensor.columns, tensor.deviation, tensor.stored(kind))
    return data.reshape(*tensor.shape[:-1], -1)


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
    for tensor in tensors(size):
        stored = gguf.GGMLQuantizationType[tensor.stored(kind)]
        elements, block_bytes = gguf.GGML_QUANT_SIZES[stored]
        exact = stored in EXACT
        row_bytes = tensor.columns // elements * block_bytes
        shape = tensor.shape if exact else (*tensor.shape[:-1], row_bytes)
        size_bytes = math.prod(tensor.shape[:-1]) * row_bytes
        element = np.dtype({"F32": np.float32, "F16": np.float16}.get(stored.name, np.uint8))
        writer.add_tensor_info(f"{tensor.name}.weight", shape, element, size_bytes, raw_dtype=stored)
        end_bytes += gguf.GGUFWriter.ggml_pad(size_bytes, writer.data_alignment)
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
    if size.experts:
        writer.add_expert_count(size.experts)
        writer.add_expert_used_count(min(size.experts_used, size.experts))
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
    for tensor in tensors(size):
        stored = gguf.GGMLQuantizationType[tensor.stored(kind)]
        raw = None if stored in EXACT else stored
        writer.add_tensor(f"{tensor.name}.weight", random_tensor(rng, tensor, kind), raw_dtype=raw)


def write_like(path: Path, base: Path, *, change: float, seed: int = 1) -> None:
    """Write a fine-tune of a model: another name, and new weights for a share of its bytes."""
    reader = gguf.GGUFReader(base)
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, reader.fields["general.architecture"].contents())
    _copy_metadata(writer, reader, path.stem)
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    changed = tuned({tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}, change)
    rng = np.random.default_rng(seed)
    for tensor in reader.tensors:
        writer.write_tensor_data(_tuned_data(rng, tensor) if tensor.name in changed else tensor.data)
    writer.close()
    unfinished.replace(path)


def tuned(sizes_bytes: dict[str, int], share: float) -> set[str]:
    """The tensors whose bytes together come closest to a share of all without exceeding it."""
    left_bytes = share * sum(sizes_bytes.values())
    found: set[str] = set()
    for kind in TUNED:
        for name, size_bytes in sizes_bytes.items():
            part = name.removesuffix(".weight").rpartition(".")[2].removesuffix("_exps")
            if part == kind and size_bytes <= left_bytes:
                found.add(name)
                left_bytes -= size_bytes
    return found


def _tuned_data(rng: np.random.Generator, like: gguf.ReaderTensor) -> npt.NDArray[np.generic]:
    columns, rows, experts = (int(size) for size in (*like.shape, 0)[:3])
    tensor = Tensor(like.name.removesuffix(".weight"), rows, columns, experts)
    return random_tensor(rng, tensor, like.tensor_type.name)


def _copy_metadata(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, name: str) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = name if key == "general.name" else field.contents()
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, kind, inner)


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    for name in Size.__dataclass_fields__:
        default = getattr(Size(), name)
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, metavar="N")
    parser.add_argument("--type", choices=tuple(FILE_TYPES), default="Q8_0")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--like", type=Path, metavar="BASE", help="a fine-tune of this file")
    parser.add_argument("--change", type=float, default=0.2, metavar="SHARE", help="of its bytes; 0.2")
    arguments = vars(parser.parse_args())
    out, kind, seed = arguments.pop("out"), arguments.pop("type"), arguments.pop("seed")
    base, change = arguments.pop("like"), arguments.pop("change")
    if base:
        write_like(out, base, change=change, seed=seed)
    else:
        write_model(out, Size(**arguments), kind=kind, seed=seed)


if __name__ == "__main__":
    main()
