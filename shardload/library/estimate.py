"""What a model will need in memory, from its header alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from shardload.config import KvType
from shardload.gguf import GGUFFile, MetadataArray

F16_BYTES = 2
BLOCK_VALUES = 32
BLOCK_BYTES: dict[KvType, int] = {"f16": BLOCK_VALUES * F16_BYTES, "q8_0": 34, "q4_0": 18}
"""What keys and values of each type take; a quantised block has a scale of its own."""
F32_BYTES = 4
CELL_PADDING_TOKENS = 256  # llama.cpp rounds a context up to this
MAX_MICRO_BATCH_TOKENS = 512
# Heap that llama.cpp's vocabulary takes, measured on vocabularies of 32k to 152k tokens.
TOKEN_BYTES = 250
MERGE_BYTES = 150

ENCODERS = frozenset(
    {
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "t5encoder",
        "gemma-embedding",
    }
)
"""Architectures without causal attention, and so without a KV cache."""


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """The numbers of a header that decide how much memory a model takes."""

    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    """In F16."""
    state_bytes_per_slot: int = 0
    """Of the layers that keep a state of fixed size for each sequence in place of a KV cache."""
    embedding_length: int = 0
    feed_forward_length: int = 0
    vocabulary_tokens: int = 0
    merges: int = 0
    layer_bytes: int = 0
    """Of the largest block."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes that opening a model will take; the weights are mapped, everything else is private memory."""

    weights_bytes: int
    vocabulary_bytes: int
    kv_bytes: int
    compute_bytes: int
    layer_bytes: int = 0
    """The part of the weights that must be in memory together for a step to go on."""
    read_places: Callable[[], Mapping[Hashable, int]] = dict
    """Quick; called on the event loop, for weights that are not open."""

    @property
    def places(self) -> Mapping[Hashable, int]:
        """The places that the weights will share with open ones, as of now, and their bytes.

        What is open changes while a request waits: nothing that was known earlier is kept.
        """
        return self.read_places()

    @property
    def context_bytes(self) -> int:
        """What a context takes: KV cache and compute buffers."""
        return self.kv_bytes + self.compute_bytes

    @property
    def private_bytes(self) -> int:
        """Anonymous memory: the context's, and the vocabulary."""
        return self.context_bytes + self.vocabulary_bytes


def memory_shape(gguf: GGUFFile) -> MemoryShape:
    """Collect from an open file what `predict` needs; unknown architectures count as llama-like."""
    header = _Numbers(gguf)
    blocks = gguf.block_count or 0
    kv_bytes, state_bytes = 0, 0
    if gguf.architecture not in ENCODERS and header.flag("attention.causal", True):
        heads = header.per_block("attention.head_count", blocks)
        kv_heads = header.per_block("attention.head_count_kv", blocks) or heads
        kv_bytes = F16_BYTES * sum(kv_heads) * _head_length(header, gguf, heads)
        state_bytes = _state_bytes(header, gguf, blocks, kv_heads)
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    return MemoryShape(
        weights_bytes=sum(tensor.nbytes for tensor in gguf.tensors.values()),
        kv_bytes_per_token=kv_bytes,
        state_bytes_per_slot=state_bytes,
        embedding_length=gguf.embedding_length or 0,
        feed_forward_length=max(header.per_block("feed_forward_length", max(blocks, 1)), default=0),
        vocabulary_tokens=gguf.vocabulary_size or 0,
        merges=len(merges) if isinstance(merges, MetadataArray) else 0,
        layer_bytes=_layer_bytes(gguf),
    )


def kv_bytes(shape: MemoryShape, ctx_tokens: int, slots: int = 1, kv_type: KvType = "f16") -> int:
    """Bytes of the KV cache for a context shared by ``slots`` sequences; recurrent states are always F32."""
    cells = -(-ctx_tokens // CELL_PADDING_TOKENS) * CELL_PADDING_TOKENS
    cells_bytes = shape.kv_bytes_per_token * cells * BLOCK_BYTES[kv_type] // BLOCK_BYTES["f16"]
    return cells_bytes + shape.state_bytes_per_slot * slots


def compute_bytes(
    shape: MemoryShape, ctx_tokens: int, slots: int = 1, *, batch_tokens: int = 512, whole_batch: bool = False
) -> int:
    """Bytes of the buffers for intermediate results and logits; an estimate, corrected after the open.

    ``whole_batch`` stands for contexts that compute each batch in one piece, as those for embeddings do.
    """
    rows = min(batch_tokens, ctx_tokens)
    if not whole_batch:
        rows = min(rows, MAX_MICRO_BATCH_TOKENS)
    has_cache = shape.kv_bytes_per_token > 0
    # Measured on llama.cpp's graphs: what is alive at the same time in the widest place.
    width = 7 * shape.embedding_length * (2 if whole_batch and has_cache else 1)
    activations = F32_BYTES * rows * (width + 2 * shape.feed_forward_length)
    mask = F16_BYTES * rows * (ctx_tokens if has_cache else rows)
    logits = F32_BYTES * slots * shape.vocabulary_tokens
    return activations + mask + logits


def vocabulary_bytes(shape: MemoryShape) -> int:
    """Heap of one llama.cpp vocabulary."""
    return TOKEN_BYTES * shape.vocabulary_tokens + MERGE_BYTES * shape.merges


def predict(
    shape: MemoryShape,
    ctx_tokens: int,
    slots: int,
    *,
    batch_tokens: int = 512,
    whole_batch: bool = False,
    kv_type: KvType = "f16",
) -> Prediction:
    """Predict what a model takes with one context; one for embeddings keeps its numbers in F16."""
    return Prediction(
        weights_bytes=shape.weights_bytes,
        vocabulary_bytes=vocabulary_bytes(shape),
        kv_bytes=kv_bytes(shape, ctx_tokens, slots, "f16" if whole_batch else kv_type),
        compute_bytes=compute_bytes(
            shape, ctx_tokens, slots, batch_tokens=batch_tokens, whole_batch=whole_batch
        ),
        layer_bytes=shape.layer_bytes,
    )


def _layer_bytes(gguf: GGUFFile) -> int:
    blocks: Counter[str] = Counter()
    for name, tensor in gguf.tensors.items():
        block, _, inner = name.removeprefix("blk.").partition(".")
        if name.startswith("blk.") and inner:
            blocks[block] += tensor.nbytes
    return max(blocks.values(), default=0)


def _head_length(header: _Numbers, gguf: GGUFFile, heads: Sequence[int]) -> int:
    """Numbers of one key and one value together."""
    widest = max(heads, default=0)
    default = (gguf.embedding_length or 0) // widest if widest else 0
    return header.number("attention.key_length", default) + header.number("attention.value_length", default)


def _state_bytes(header: _Numbers, gguf: GGUFFile, blocks: int, kv_heads: Sequence[int]) -> int:
    """State of the recurrent layers: those without KV heads, or all where there are no heads at all."""
    layers = sum(1 for count in kv_heads if count == 0) if any(kv_heads) else blocks
    inner, state = header.number("ssm.inner_size", 0), header.number("ssm.state_size", 0)
    if inner and state:
        groups = header.number("ssm.group_count", 0)
        convolution = (header.number("ssm.conv_kernel", 1) - 1) * (inner + 2 * groups * state)
        return F32_BYTES * layers * (convolution + inner * state)
    if head_size := header.number("wkv.head_size", 0):
        width = gguf.embedding_length or 0
        return F32_BYTES * layers * width * (header.number("token_shift_count", 2) + head_size)
    return 0


class _Numbers:
    """Reads the keys of a file's own architecture, whatever type they were written in."""

    def __init__(self, gguf: GGUFFile) -> None:
        self._metadata, self._architecture = gguf.metadata, gguf.architecture

    def number(self, suffix: str, default: int) -> int:
        value = self._metadata.get(f"{self._architecture}.{suffix}")
        return max(value, 0) if isinstance(value, int) else default

    def flag(self, suffix: str, default: bool) -> bool:
        value = self._metadata.get(f"{self._architecture}.{suffix}")
        return value if isinstance(value, bool) else default

    def per_block(self, suffix: str, blocks: int) -> list[int]:
        """One number for each block, from a scalar or an array; empty when the key is not there."""
        value = self._metadata.get(f"{self._architecture}.{suffix}")
        if isinstance(value, MetadataArray):
            return [number if isinstance(number, int) and number > 0 else 0 for number in value[:blocks]]
        return [max(value, 0)] * blocks if isinstance(value, int) else []
