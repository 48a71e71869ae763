"""Weights: one open model file, mapped."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from shardload import memory
from shardload.errors import HandleClosed, LoadFailed
from shardload.llama.files import load_files
from shardload.llama.handle import Handle, closed_by_collector
from shardload.llama.loading import Loading
from shardload.llama.placed import Layouts, PlacedTensor
from shardload.llama.tokenizer import shared_vocabularies
from shardload.llama.vocab import Vocab
from shardload.memory import MappedFile
from shardload.shards.identity import FileIdentity
from shardload_native.amx import avoid_traps
from shardload_native.callbacks import keep, raised_in_callbacks
from shardload_native.hooks import Mapping, keeping, lazy_mapping
from shardload_native.library import Llama, load, text

if TYPE_CHECKING:
    from shardload.llama.cursor import Cursor
    from shardload.llama.paged import PagedWeights
    from shardload.shards.pantry import Shelf

logger = logging.getLogger("shardload.llama")

# By what files say, which may be any number.
POOLINGS = {"0": "none", "1": "mean", "2": "cls", "3": "last", "4": "rank"}
READ_AHEAD_BYTES = 16 * 2**20
"""More than systems read ahead of one who reads a header."""

# Weights that the garbage collector found to have no user. It runs in the middle of anything: of another load
# on the same thread too, whose mappings they are not to be freed under, and where locks are held.
_found: deque[Callable[[], None]] = deque()


@dataclass(frozen=True, slots=True)
class ModelParams:
    """How a model is opened.

    ``use_extra_bufts`` lets llama.cpp copy some quantised weights into an order its kernels like: faster,
    and private memory instead of shared pages. ``lazy=False`` is llama.cpp's own load, which reads the
    whole file. ``check_tensors`` looks for invalid values, which also reads everything. ``shelf`` knows
    which of the copies are stored already, to be mapped instead; without ``pack_at_once`` the others are not
    made, and their tensors are read as the file has them until somebody packs them.
    """

    gpu_layers: int = 0
    use_extra_bufts: bool = False
    lazy: bool = True
    check_tensors: bool = False
    shelf: Shelf | None = None
    pack_at_once: bool = True


class Model(Handle):
    """The weights of one model. Opened and closed on the opener thread.

    Contexts keep their model: `close()` while some are open ends the use of this handle at once, and gives
    the weights back when the last context closes. Those of a model that nobody closed stay until the next one
    is opened.
    """

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        params: ModelParams | None = None,
        progress: Callable[[float], bool] | None = None,
    ) -> Self:
        """Map a model file, or all parts of a split one, in order.

        ``progress`` is told how much is done, 0 to 1; returning False gives the load up. It opens and closes
        no model. Raises LoadFailed with llama.cpp's reason, or what ``progress`` or Ctrl-C raised.
        """
        _free_found()
        params = params or ModelParams()
        llama = load()
        if params.use_extra_bufts:
            avoid_traps(llama)
        started = time.perf_counter()
        loading = Loading(params.shelf, params.pack_at_once)
        try:
            with shared_vocabularies().lent(paths) as vocab:
                pointer, mappings = _load(llama, paths, params, progress, loading, vocab)
        except BaseException:
            loading.release()
            raise
        model = cls(llama, pointer, paths, mappings, loading, vocab, read=params.check_tensors)
        logger.info(
            "opened %s: %d bytes, %s, %.0f ms",
            model.path,
            model.size_bytes,
            "mapped lazily" if model.lazily_mapped else "read by llama.cpp",
            (time.perf_counter() - started) * 1000,
        )
        return model

    def __init__(
        self,
        llama: Llama,
        pointer: Any,
        paths: Sequence[Path],
        mappings: tuple[Mapping, ...],
        loading: Loading,
        vocab: Vocab | None,
        *,
        read: bool,
    ) -> None:
        super().__init__(f"model {paths[0]}", pointer)
        self.llama = llama
        self.paths = tuple(paths)
        self.path = self.paths[0]
        self.mappings = self._kept = mappings
        self._loading = loading
        self.tensors = tuple(loading.tensors)
        self.layouts = Layouts(self.tensors)
        self.paged: PagedWeights | None = None
        """Whoever minds their pages, for as long as somebody does."""
        # Whether opening left all weights untouched in their files.
        self.lazily_mapped = bool(mappings) and not read and not self.private_tensors
        # The garbage collector may close a context on a thread that has it.
        self._users_lock = threading.RLock()
        self._users = 1
        self._weights = pointer
        self.vocab = vocab or Vocab(
            llama,
            llama.lib.llama_model_get_vocab(pointer),
            check_open=lambda: self.weights,
            adds_space=self.metadata("tokenizer.ggml.add_space_prefix") != "false",
        )
        try:
            self._read_facts()
        except BaseException:
            self.close()
            raise

    def _read_facts(self) -> None:
        llama, pointer = self.llama, self.pointer
        lib = llama.lib
        self.n_vocab = self.vocab.n_tokens
        self.n_ctx_train = lib.llama_model_n_ctx_train(pointer)
        self.n_embd = lib.llama_model_n_embd(pointer)
        self.n_embd_out = lib.llama_model_n_embd_out(pointer)
        self.n_layer = lib.llama_model_n_layer(pointer)
        self.n_params = lib.llama_model_n_params(pointer)
        self.size_bytes = lib.llama_model_size(pointer)
        self.has_encoder = bool(lib.llama_model_has_encoder(pointer))
        self.has_decoder = bool(lib.llama_model_has_decoder(pointer))
        self.is_recurrent = bool(lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))
        buffer = llama.ffi.new("char[256]")
        lib.llama_model_desc(pointer, buffer, 256)
        self.description = text(llama.ffi, buffer)
        self.architecture = self.metadata("general.architecture") or ""
        self.pooling = POOLINGS.get(self.metadata(f"{self.architecture}.pooling_type") or "")

    @property
    def unstored_tensors(self) -> list[PlacedTensor]:
        """The tensors that have a packed order, and no file has them in that."""
        return [p for p in self.tensors if p.packing is not None and p.packing.stored is None]

    @property
    def is_stored(self) -> bool:
        """Whether there are tensors that have a packed order, and files have all of them in that."""
        return any(p.packing is not None for p in self.tensors) and not self.unstored_tensors

    @property
    def private_tensors(self) -> list[PlacedTensor]:
        """The tensors whose packed bytes are in this process's own memory."""
        return [p for p in self.tensors if p.packing is not None and p.packing.is_private]

    @property
    def private_tensor_bytes(self) -> int:
        """What they take there."""
        return sum(placed.packing.private.length for placed in self.private_tensors if placed.packing)

    def is_of(self, statuses: Iterable[os.stat_result]) -> bool:
        """Whether files, by what `os.stat` says of each, still are those that were mapped for the model."""
        now = {FileIdentity.of(status).lasting for status in statuses}
        return now == {identity.lasting for identity in self._loading.identities}

    def computing(self, tokens: int, cursor: Cursor | None = None) -> AbstractContextManager[None]:
        """Mind the pages of the weights, and the order that so many tokens want, while the body computes."""
        if self.paged is not None:
            return self.paged.step(tokens, cursor)
        return self.layouts.computing("packed")

    def drop_read_ahead(self) -> None:
        """Let go of what reading the headers has read beyond them; nothing that is in use."""
        for path, mapping in zip(self.paths, self._kept, strict=False):
            start = self._loading.data_starts.get(mapping.address)
            if start is not None:
                with suppress(OSError):  # deleted meanwhile
                    memory.drop_file_cache(path, start - mapping.address, READ_AHEAD_BYTES)

    def keep_mapped(self, file: MappedFile) -> None:
        """Take over a mapping that tensors are moved to; it lasts as long as the weights."""
        self._loading.files.append(file)

    def resident_bytes(self) -> int | None:
        """Bytes of the files that are in memory now, measured; None where the system does not tell.

        Raises OSError for files that are gone.
        """
        _ = self.weights
        counts = [memory.file_resident_bytes(path) for path in self.paths]
        return None if None in counts else sum(count for count in counts if count is not None)

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text; None when absent. Arrays are not available."""
        ffi, lib = self.llama.ffi, self.llama.lib
        needed = lib.llama_model_meta_val_str(self.pointer, key.encode(), ffi.NULL, 0)
        if needed < 0:
            return None
        buffer = ffi.new("char[]", needed + 1)
        lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, needed + 1)
        return text(ffi, buffer)

    @property
    def weights(self) -> Any:
        """The C pointer as long as any context is open; raises HandleClosed afterwards."""
        if self._weights is None:
            raise HandleClosed(self._what)
        return self._weights

    def retain(self) -> Any:
        """The C pointer, with one more user of the weights; each user calls `release()` once."""
        with self._users_lock:
            pointer = self.pointer
            self._users += 1
            return pointer

    def release(self) -> None:
        """Count one user less; the last one's release gives the weights back."""
        with self._users_lock:
            self._users = left = self._users - 1
            if left:
                return
            pointer, self._weights = self._weights, None
        self.mappings, self.tensors = (), ()
        if closed_by_collector():
            _found.append(partial(self._free_weights, pointer))
        else:
            self._free_weights(pointer)

    def _free_weights(self, pointer: Any) -> None:
        with keeping(self._kept):
            self.llama.lib.llama_model_free(pointer)
        self._loading.release()
        shared_vocabularies().release(self.vocab)

    def _free(self, pointer: Any) -> None:
        self.release()


def _free_found() -> None:
    """Free the weights that the garbage collector found, if any."""
    while _found:
        try:
            free = _found.popleft()
        except IndexError:  # another thread does it
            return
        free()


def _load(
    llama: Llama,
    paths: Sequence[Path],
    params: ModelParams,
    progress: Callable[[float], bool] | None,
    loading: Loading,
    vocab: Vocab | None,
) -> tuple[Any, tuple[Mapping, ...]]:
    ffi, native = llama.ffi, llama.lib.llama_model_default_params()
    native.n_gpu_layers = params.gpu_layers
    native.use_extra_bufts = params.use_extra_bufts
    native.check_tensors = params.check_tensors
    shared_vocabularies().leave_out(vocab, native)
    with llama.log.collect() as log, raised_in_callbacks() as raised:
        callback = _progress_callback(ffi, progress, raised)
        native.progress_callback = callback
        # Layers on another device are copied there: reading ahead is right for them.
        lazy = params.lazy and params.gpu_layers == 0
        with lazy_mapping(loading, needs_tokens=vocab is None) if lazy else nullcontext() as recording:
            pointer = load_files(llama, paths, native)
            if pointer != ffi.NULL:
                _finish(llama, pointer, paths, loading, vocab, raised)
        mappings = tuple(recording.mappings) if recording is not None else ()
    if pointer != ffi.NULL:
        return pointer, mappings
    if raised:
        raise raised[0]
    cancelled = any("cancelled" in line for _, line in log.lines)
    raise LoadFailed(str(paths[0]), "the load was given up" if cancelled else log.reason())


def _finish(
    llama: Llama,
    pointer: Any,
    paths: Sequence[Path],
    loading: Loading,
    vocab: Vocab | None,
    raised: Sequence[BaseException],
) -> None:
    try:
        if raised:
            raise raised[0]
        if vocab is not None and not shared_vocabularies().fits(vocab, paths):
            raise LoadFailed(str(paths[0]), "it was replaced while it was opened, by a file of other tokens")
        if not loading.identities:  # llama.cpp has mapped or read them itself
            loading.identities.extend(map(FileIdentity.of, paths))
        loading.finish()
    except BaseException:
        llama.lib.llama_model_free(pointer)
        raise


def _progress_callback(
    ffi: Any, progress: Callable[[float], bool] | None, raised: Sequence[BaseException]
) -> Any:
    """A C function that reports progress, and ends a load that is not whole; without it there are dots."""

    def report(done: float, _data: Any) -> bool:
        return not raised and (progress is None or bool(progress(done)))

    return ffi.callback("bool(float, void *)", report, error=False, onerror=keep)
