"""One vocabulary in memory for all models with the same tokenizer.

llama.cpp reads a vocabulary into the heap of each model: the largest part of what an idle model takes. Here
it is loaded once, by itself, and the models are opened without one.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardload.errors import GGUFError, HandleClosed, LoadFailed
from shardload.gguf import GGUFFile
from shardload.llama.files import load_files
from shardload.llama.tokenizer_identity import TokenizerIdentity, identify
from shardload.llama.vocab import Vocab
from shardload.shards.identity import FileIdentity
from shardload_native.callbacks import raised_in_callbacks
from shardload_native.library import Llama, load

logger = logging.getLogger("shardload.llama")

# With it llama.cpp writes the text of each token that it computes, and ends the process where there is none.
PRINTS_TOKENS = "LLAMA_BATCH_DEBUG"


def without_vocabulary(llama: Llama, native_params: Any, architecture: str, n_tokens: int) -> Any:
    """Let a load with these parameters skip the vocabulary; the model still counts ``n_tokens``.

    Returns what has to be kept until the load is over.
    """
    kinds = llama.ffi.typeof("enum llama_model_kv_override_type").relements
    overrides = llama.ffi.new("struct llama_model_kv_override[3]")  # the last, empty, ends the list
    kind, size = overrides[0], overrides[1]
    kind.tag, kind.key, kind.val_str = kinds["LLAMA_KV_OVERRIDE_TYPE_STR"], b"tokenizer.ggml.model", b"none"
    size.tag, size.val_i64 = kinds["LLAMA_KV_OVERRIDE_TYPE_INT"], n_tokens
    size.key = f"{architecture}.vocab_size".encode()
    native_params.kv_overrides = overrides
    return overrides


@functools.cache
def shared_vocabularies() -> SharedVocabularies:
    """Those of this process. Raises UnsupportedLlama."""
    return SharedVocabularies(load())


class SharedVocabularies:
    """Vocabularies by tokenizer, each kept as long as a model uses it; on any thread."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        # A model that nobody closed gives its vocabulary back wherever the garbage collector runs: here too.
        self._lock = threading.RLock()
        self._loaded: dict[str, _Loaded] = {}
        self._lent: dict[Vocab, _Loan] = {}
        # By file, what it was when its header was read: that takes a good part of the time of an open.
        self._known: dict[Path, tuple[FileIdentity, TokenizerIdentity]] = {}

    def __len__(self) -> int:
        """Vocabularies in memory."""
        return len(self._loaded)

    def acquire(self, paths: Sequence[Path]) -> Vocab | None:
        """The vocabulary for a model in these files; None where it has to load its own.

        Each one taken is given back with `release()`.
        """
        identity = self._identity(paths[0])
        if identity is None:
            return None
        loaded = self._enter(identity)
        try:
            vocab = loaded.vocab_for(self._llama, paths, identity)
        except BaseException as error:
            self._leave(loaded)
            if not isinstance(error, LoadFailed):
                raise
            logger.debug("%s keeps a vocabulary of its own: %s", paths[0], error)
            return None
        loan = _Loan(loaded, identity, f"model {paths[0]}")
        lent = Vocab(
            self._llama, vocab.pointer, check_open=loan.check, adds_space=identity.adds_space, like=vocab
        )
        with self._lock:
            self._lent[lent] = loan
        return lent

    def release(self, vocab: Vocab) -> None:
        """Give one back: its use raises HandleClosed from now on. A model's own vocabulary is ignored."""
        with self._lock:
            loan = self._lent.pop(vocab, None)
        if loan is not None:
            loan.ended = True
            self._leave(loan.loaded)

    def fits(self, vocab: Vocab, paths: Sequence[Path]) -> bool:
        """Whether one that was acquired for these files is that of what they are now."""
        return self._lent[vocab].identity == self._identity(paths[0])

    @contextmanager
    def lent(self, paths: Sequence[Path]) -> Iterator[Vocab | None]:
        """As `acquire()`; when the body fails, the vocabulary is given back."""
        vocab = self.acquire(paths)
        try:
            yield vocab
        except BaseException:
            if vocab is not None:
                self.release(vocab)
            raise

    def leave_out(self, vocab: Vocab | None, native_params: Any) -> None:
        """Let the load of the model that ``vocab`` was lent for skip its own."""
        if vocab is not None:
            loan = self._lent[vocab]
            loan.overrides = without_vocabulary(
                self._llama, native_params, loan.identity.architecture, loan.identity.n_tokens
            )

    def _identity(self, path: Path) -> TokenizerIdentity | None:
        if os.environ.get(PRINTS_TOKENS):
            return None
        try:
            now = FileIdentity.of(path)
        except OSError:
            return None
        known, settled = self._known.get(path), not now.unsettled_seconds
        if known is not None and known[0] == now:
            return known[1]
        identity = _identity_of(path)
        if identity is not None and settled:
            self._known[path] = now, identity
        return identity

    def _enter(self, identity: TokenizerIdentity) -> _Loaded:
        with self._lock:
            loaded = self._loaded.setdefault(identity.digest, _Loaded(identity.digest))
            loaded.users += 1
            return loaded

    def _leave(self, loaded: _Loaded) -> None:
        with self._lock:
            loaded.users -= 1
            if loaded.users:
                return
            del self._loaded[loaded.digest]
        loaded.free(self._llama)


@dataclass(slots=True, eq=False)
class _Loaded:
    """A vocabulary-only model and who counts on it; loaded by the first, waited for by others."""

    digest: str
    users: int = 0
    vocab: Vocab | None = None
    model: Any = None
    loading: threading.Lock = field(default_factory=threading.Lock)

    def vocab_for(self, llama: Llama, paths: Sequence[Path], identity: TokenizerIdentity) -> Vocab:
        """The vocabulary, loaded from these files if it is not yet. Raises LoadFailed."""
        with self.loading:
            if self.vocab is None:
                pointer = _load_vocabulary(llama, paths)
                vocab = Vocab(
                    llama,
                    llama.lib.llama_model_get_vocab(pointer),
                    check_open=lambda: None,
                    adds_space=identity.adds_space,
                )
                # A file may have been replaced meanwhile: its tokens would be taken for those of others.
                if _identity_of(paths[0]) != identity or vocab.n_tokens != identity.n_tokens:
                    llama.lib.llama_model_free(pointer)
                    raise LoadFailed(str(paths[0]), "the vocabulary is not the one that its header has")
                self.model, self.vocab = pointer, vocab
            return self.vocab

    def free(self, llama: Llama) -> None:
        pointer, self.model, self.vocab = self.model, None, None
        if pointer is not None:
            llama.lib.llama_model_free(pointer)


@dataclass(slots=True, eq=False)
class _Loan:
    loaded: _Loaded
    identity: TokenizerIdentity
    what: str
    ended: bool = False
    overrides: Any = None

    def check(self) -> None:
        if self.ended:
            raise HandleClosed(self.what)


def _identity_of(path: Path) -> TokenizerIdentity | None:
    try:
        with GGUFFile(path) as file:
            return identify(file)
    except (GGUFError, OSError) as error:
        # llama.cpp reads the file too, and has the last word on it.
        logger.debug("the tokenizer of %s is not known: %s", path, error)
        return None


def _load_vocabulary(llama: Llama, paths: Sequence[Path]) -> Any:
    native = llama.lib.llama_model_default_params()
    native.vocab_only, native.n_gpu_layers, native.use_extra_bufts = True, 0, False
    with llama.log.collect() as log, raised_in_callbacks() as raised:
        pointer = load_files(llama, paths, native)
    if raised:
        llama.lib.llama_model_free(pointer)  # or NULL
        raise raised[0]
    if pointer == llama.ffi.NULL:
        raise LoadFailed(str(paths[0]), log.reason())
    return pointer
