"""A context over a model: KV slots and computation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shardload import memory
from shardload.config import KvType
from shardload.errors import DecodeFailed, LoadFailed, NativeError
from shardload.llama.batch import Batch
from shardload.llama.cursor import Cursor
from shardload.llama.handle import Handle
from shardload.llama.sampler import Sampler
from shardload.memory.scratch import scratch
from shardload_native.buffers import recorded_buffers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardload.engine.runner import Run
    from shardload.engine.sampling import SamplingParams
    from shardload.llama.model import Model

logger = logging.getLogger("shardload.llama")

Pooling = Literal["none", "mean", "cls", "last", "rank"]
POOLING_TYPES: dict[Pooling, int] = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
# The numbers of ggml.h; all but F16 come in blocks.
KV_TYPES: dict[KvType, int] = {"f16": 1, "q4_0": 2, "q8_0": 8}
UBATCH_TOKENS = 512
NO_ROOM = 1
# Their position embeddings are a table: a position beyond it ends the process.
POSITION_TABLES = frozenset({"bert", "gpt2", "mpt", "starcoder"})
FLASH_ATTENTION_AUTO = -1


@dataclass(frozen=True, slots=True)
class ContextParams:
    """The size and use of a context.

    ``ctx_tokens`` KV cells are shared by all ``slots``. ``threads`` compute steps of single tokens,
    ``threads_batch`` those of prompts. ``pooling=None`` is the model's own. Keys and values are kept as
    ``kv_type`` says; a context for embeddings keeps F16, since it keeps them for no longer than a step.
    """

    ctx_tokens: int
    threads: int
    threads_batch: int
    slots: int = 1
    batch_tokens: int = 512
    embeddings: bool = False
    pooling: Pooling | None = None
    kv_unified: bool = True
    kv_type: KvType = "f16"


class Context(Handle):
    """One context of a model; a Runner for the engine.

    Opened and closed on the opener thread, used on the lane thread between. Keeps its model's weights.
    ``kv_bytes`` and ``compute_bytes`` are what llama.cpp reserved, privately, for the cache and for
    computing.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Reserve the KV cache and the compute buffers. Raises LoadFailed."""
        super().__init__(f"context of {model.path}", None)
        self.model, self.params = model, params
        self.vocab = model.vocab
        self.slots, self.n_vocab = params.slots, model.n_vocab
        self._cursor: Cursor | None = None
        self._can_be_followed = True
        weights = model.retain()
        try:
            self._handle = self._create(weights)
        except BaseException:
            model.release()
            raise
        lib = model.llama.lib
        self._ffi, self._lib = model.llama.ffi, lib
        self.ctx_tokens = min(params.ctx_tokens, lib.llama_n_ctx(self._handle))
        if model.architecture in POSITION_TABLES:
            self.ctx_tokens = min(self.ctx_tokens, model.n_ctx_train)
        self.batch_tokens = lib.llama_n_batch(self._handle)
        pooling = lib.llama_pooling_type(self._handle)
        self.pooled = pooling != POOLING_TYPES["none"]
        # A model that ranks gives its scores where others give an embedding.
        ranks = pooling == POOLING_TYPES["rank"]
        self._pooled_width = lib.llama_model_n_cls_out(weights) if ranks else model.n_embd_out
        self.state_kind = self._kind_of_states()
        self._memory = lib.llama_get_memory(self._handle)
        self._has_memory = self._memory != self._ffi.NULL
        self._compute = lib.llama_decode if self._has_memory else lib.llama_encode
        self._max_rows = self.batch_tokens if params.embeddings else params.slots
        self._batch = Batch(self._ffi, self.batch_tokens, params.slots)
        self._rows: list[int] = []
        self._parts = 1

    def _create(self, weights: Any) -> Any:
        model, params = self.model, self.params
        llama = model.llama
        if model.has_encoder and model.has_decoder:
            raise LoadFailed(f"context of {model.path}", "models with encoder and decoder are not supported")
        native = llama.lib.llama_context_default_params()
        native.n_ctx, native.n_batch, native.n_seq_max = params.ctx_tokens, params.batch_tokens, params.slots
        # Without causal attention a prompt is computed in one piece.
        native.n_ubatch = (
            params.batch_tokens if params.embeddings else min(params.batch_tokens, UBATCH_TOKENS)
        )
        # By default room for the logits of a whole batch is kept: 64 MiB for a vocabulary of 32,000.
        native.n_outputs_max = 0 if params.embeddings else params.slots
        native.n_threads, native.n_threads_batch = params.threads, params.threads_batch
        native.embeddings, native.kv_unified, native.no_perf = params.embeddings, params.kv_unified, True
        # Quantised values need it: llama.cpp then refuses a model that has to do without.
        native.flash_attn_type = FLASH_ATTENTION_AUTO
        if not params.embeddings:
            native.type_k = native.type_v = KV_TYPES[params.kv_type]
        if params.pooling is not None:
            native.pooling_type = POOLING_TYPES[params.pooling]
        with llama.log.collect() as log, recorded_buffers() as buffers:
            pointer = llama.lib.llama_init_from_model(weights, native)
        if pointer == llama.ffi.NULL:
            reason = log.reason()
            if params.kv_type != "f16" and "cache" in reason.lower():
                reason = f"the KV type {params.kv_type} does not fit this model, use f16: {reason}"
            raise LoadFailed(f"{params.ctx_tokens}-token context of {model.path}", reason)
        self._kv_ranges = [memory.Range(address, length) for address, length in buffers]
        self.kv_bytes = log.mebibytes("KV buffer size") + log.mebibytes("RS buffer size")
        self.compute_bytes = log.mebibytes("compute buffer size") + log.mebibytes("output buffer size")
        return pointer

    def decode(self, runs: Sequence[Run]) -> bool:
        """Compute the runs in one batch; False when the KV cache has no room. Raises DecodeFailed.

        With ``embeddings`` every token is an output, whatever a run wants.
        """
        context = self.pointer
        self._rows = []
        rows = self._batch.fill(runs, every_row=self.params.embeddings)
        if len(rows) > self._max_rows:
            raise ValueError(f"{len(rows)} outputs wanted of a context that has room for {self._max_rows}")
        with self.model.computing(sum(len(run.tokens) for run in runs), self._cursor_if_streamed()):
            status = self._compute(context, self._batch.native)
        if status == 0:
            self._rows = rows
            return True
        if status == NO_ROOM:
            return False
        raise DecodeFailed(status)

    def _cursor_if_streamed(self) -> Cursor | None:
        """What tells how far a step has come, for weights that are read while it computes."""
        paged = self.model.paged
        if paged is None or not paged.streams:
            if self._cursor is not None:  # counting on and on, it would stop a step some day
                self._cursor.close()
                self._cursor = None
            return None
        if self._cursor is None and self._can_be_followed:
            try:
                self._cursor = Cursor(self.pointer, self.model.llama)
            except OSError as error:
                self._can_be_followed = False
                logger.warning("steps of %s are not followed while they read: %s", self.model.path, error)
        return self._cursor

    def logits(self, row: int) -> NDArray[np.float32]:
        """The logits of an output row of the last decode: llama.cpp's memory, valid until the next."""
        pointer = self._lib.llama_get_logits_ith(self.pointer, self._rows[row])
        return self._view(pointer, self.n_vocab)

    def batch_index(self, row: int) -> int:
        """Where in the last batch the token of an output row stands."""
        return self._rows[row]

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """A sampler that has seen ``history``. Raises RequestError for parameters it cannot follow."""
        return Sampler(self, params, history)

    def forget(self, slot: int, start: int = 0) -> bool:
        """Drop a slot's KV from position ``start`` on; False where the model's state has no way back."""
        self._check_slots(slot)
        if not self._has_memory:
            return True
        if start and not self._reaches_back(slot, start):
            return False
        return bool(self._lib.llama_memory_seq_rm(self._memory, slot, start, -1))

    def _reaches_back(self, slot: int, start: int) -> bool:
        """Whether a slot that ends before ``start`` is as if it had never gone on.

        Layers that see a window only let go of what is before it: after that there is no shorter sequence.
        """
        lib, cells = self._lib, self._memory
        if lib.llama_memory_seq_pos_min(cells, slot) == 0:
            return True
        return bool(lib.llama_memory_seq_pos_max(cells, slot) + 1 == start)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let ``target`` see the first tokens of ``source``; nothing is copied in a unified cache."""
        self._check_slots(source, target)
        if not self.params.kv_unified and self.slots > 1:
            raise ValueError("slots share their KV in a unified cache only")
        if self._has_memory:
            self._lib.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def _kind_of_states(self) -> str:
        """What a saved state must be of to fit here, beside the weights."""
        model, llama, streams = self.model, self.model.llama, 1 if self.params.kv_unified else self.slots
        original = model.metadata(f"{model.architecture}.rope.scaling.original_context_length")
        sequence_tokens = self._lib.llama_n_ctx(self.pointer) // streams
        # Models with two tables of RoPE factors take the other one in a context longer than this.
        is_long = sequence_tokens > (int(original) if original else model.n_ctx_train)
        build = f"llama-cpp-python {llama.version}, ggml {llama.ggml_version}"
        return f"{self.params.kv_type}, {streams} streams, {'long context, ' * is_long}{build}"

    def state_bytes(self, slot: int) -> int:
        """The size of a slot's saved state; 0 where it has none."""
        self._check_slots(slot)
        return int(self._lib.llama_state_seq_get_size(self.pointer, slot)) if self._has_memory else 0

    def save(self, slot: int) -> memoryview:
        """A copy of a slot's KV, at the speed of memory. Raises NativeError."""
        state = scratch(self.state_bytes(slot))
        target = self._ffi.from_buffer("uint8_t[]", state)
        written = self._lib.llama_state_seq_get_data(self.pointer, target, len(state), slot) if state else 0
        if not written or written != len(state):
            raise NativeError(f"the state of slot {slot} of {self.model.path} could not be saved")
        return state

    def restore(self, slot: int, state: memoryview) -> bool:
        """Replace a slot's KV by a saved one; False, and an empty slot, where it does not fit."""
        self.forget(slot)
        if not (self._has_memory and state):
            return False
        source = self._ffi.from_buffer("uint8_t[]", state)
        read = self._lib.llama_state_seq_set_data(self.pointer, source, len(state), slot)
        if read == len(state):
            return True
        self.forget(slot)
        return False

    def give_back(self) -> int:
        """Let the system have the pages of an empty cache until they are written again; their bytes."""
        _ = self.pointer
        if not self._has_memory or not self._kv_ranges:
            return 0
        if any(self._lib.llama_memory_seq_pos_max(self._memory, slot) >= 0 for slot in range(self.slots)):
            return 0
        before = self.kv_resident_bytes
        self._lib.llama_memory_clear(self._memory, False)
        for place in self._kv_ranges:
            memory.discard(place)
        return before - self.kv_resident_bytes

    @property
    def kv_resident_bytes(self) -> int:
        """What the cache has in memory now, where that is known; what it was given at first elsewhere."""
        _ = self.pointer
        counts = [memory.resident_bytes(place.address, place.length) for place in self._kv_ranges]
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else self.kv_bytes

    def embedding(self, slot: int) -> NDArray[np.float32]:
        """The pooled embedding of a slot's sequence in the last decode: a copy, not normalised.

        A context that ranks gives its scores instead.
        """
        pointer = self._lib.llama_get_embeddings_seq(self.pointer, slot)
        if pointer == self._ffi.NULL:
            raise ValueError(f"slot {slot} has no pooled embedding: it was not in the last decode")
        return self._view(pointer, self._pooled_width).copy()

    def token_embeddings(self, rows: int) -> NDArray[np.float32]:
        """The first output rows of the last decode, unpooled, in one array: a copy."""
        listed = [self._lib.llama_get_embeddings_ith(self.pointer, row) for row in self._rows[:rows]]
        if any(pointer == self._ffi.NULL for pointer in listed):
            raise ValueError("the last decode has no unpooled embeddings")
        width = self.model.n_embd_out
        return np.stack([self._view(pointer, width) for pointer in listed])

    def divide_cores(self, parts: int) -> None:
        """Compute with one of so many equal parts of the threads; 1 is all of them."""
        if parts != self._parts:
            self._parts = parts
            threads, threads_batch = (
                max(1, count // parts) for count in (self.params.threads, self.params.threads_batch)
            )
            self._lib.llama_set_n_threads(self.pointer, threads, threads_batch)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens."""
        return self.vocab.piece(token)

    def is_end(self, token: int) -> bool:
        """Whether a token ends the generation."""
        return self.vocab.is_end(token)

    def _check_slots(self, *slots: int) -> None:
        _ = self.pointer
        for slot in slots:
            if not 0 <= slot < self.slots:
                raise ValueError(f"slot {slot} of a context with {self.slots}")

    def _view(self, pointer: Any, count: int) -> NDArray[np.float32]:
        return np.frombuffer(self._ffi.buffer(pointer, 4 * count), np.float32)

    def _free(self, pointer: Any) -> None:
        self._rows = []
        if self._cursor is not None:
            self._cursor.close()
        self.model.llama.lib.llama_free(pointer)
        self.model.release()
