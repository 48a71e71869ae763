"""Loads that touch no page: llama.cpp's own mmap without the flag that reads the whole file.

While a load runs on this thread, the slots through which libllama calls `mmap`, `munmap` and
`posix_madvise` point at functions of ours: MAP_POPULATE is dropped, advice is swallowed but for our own, and
each mapping of a file is noted. A `Host` may map the files itself, and keeps them then, and is told of each
tensor: it may have a packed one already, which spares llama.cpp the packing. A load that needs no vocabulary
finds the lists of the tokenizer empty. A load during which one of the functions raised something, Ctrl-C for
one, is not whole, and `raised_in_callbacks` has it. The slots are put back afterwards. Calls of other threads
pass through unchanged.
Where a slot is missing or holds something unexpected, and on platforms other than Linux, nothing is
touched and the load is llama.cpp's ordinary one.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from shardload_native import libc
from shardload_native.callbacks import keep
from shardload_native.got import SlotsNotFound
from shardload_native.library import Llama, load
from shardload_native.slots import Slots
from shardload_native.tensors import Tensor, TensorAccess, tensor_access

T = TypeVar("T")

logger = logging.getLogger("shardload.llama")

# Two sets of hooks would each take the other's functions for the original ones.
_searching = threading.Lock()

SYMBOLS = ("mmap", "munmap", "posix_madvise")
TENSOR_SYMBOLS = ("ggml_backend_tensor_alloc", "ggml_backend_tensor_set")
# llama.cpp writes each list of a file out as text, to log its beginning: most of the time of a load.
LIST_SYMBOL = "gguf_get_arr_n"
TOKENIZER_PREFIX = b"tokenizer.ggml."
MAP_ANONYMOUS, MAP_POPULATE = 0x20, 0x8000
SIGNATURES = {
    "mmap": "intptr_t(uintptr_t, size_t, int, int, int, long)",
    "munmap": "int(uintptr_t, size_t)",
    "posix_madvise": "int(uintptr_t, size_t, int)",
    "ggml_backend_tensor_alloc": "int(uintptr_t, struct ggml_tensor *, uintptr_t)",
    "ggml_backend_tensor_set": "void(struct ggml_tensor *, uintptr_t, size_t, size_t)",
    LIST_SYMBOL: "size_t(const struct gguf_context *, int64_t)",
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of this process's memory that shows a part of a file, from ``offset`` in the file."""

    address: int
    length: int
    path: str
    offset: int = 0
    kept: bool = False
    """Whether it is the host's: llama.cpp uses it and does not unmap it."""


class Host(Protocol):
    """Has files and packed tensors in memory before llama.cpp asks for them; called on the loading thread."""

    def map_file(self, descriptor: int, length: int) -> int | None:
        """The address of a mapping of the whole file that outlives the model; None: llama.cpp maps it."""

    def mapped(self, tensor: Tensor) -> None:
        """A tensor has got its bytes in a mapped file; they may be moved to equal ones."""

    def copying(self, tensor: Tensor, source: int) -> bool:
        """A tensor is to be packed from ``source``; True if it has got its packed bytes already."""


@dataclass(slots=True)
class Recording:
    """What one hooked load mapped."""

    mappings: list[Mapping] = field(default_factory=list)
    host: Host | None = None
    needs_tokens: bool = True

    def keeps(self, address: int) -> bool:
        """Whether an address is in a mapping of the host."""
        return any(m.kept and m.address <= address < m.address + m.length for m in self.mappings)

    def forget(self, address: int, length: int) -> None:
        """Take an unmapped range out of the mappings."""
        self.mappings = [piece for mapping in self.mappings for piece in subtract(mapping, address, length)]


def subtract(mapping: Mapping, address: int, length: int) -> list[Mapping]:
    """What is left of a mapping without a range: zero, one or two pieces."""
    end = mapping.address + mapping.length
    before = min(max(address - mapping.address, 0), mapping.length)
    after = min(max(end - (address + length), 0), mapping.length)
    if before + after >= mapping.length:
        return [mapping]
    pieces = []
    if before:
        pieces.append(Mapping(mapping.address, before, mapping.path, mapping.offset))
    if after:
        skipped = mapping.length - after
        pieces.append(Mapping(mapping.address + skipped, after, mapping.path, mapping.offset + skipped))
    return pieces


class LoadHooks:
    """The slots of one libllama and the functions that stand in for them; one per process."""

    def __init__(self, llama: Llama, slots: Slots, tensors: TensorAccess | None = None) -> None:
        self._llama, self._slots, self._tensors = llama, slots, tensors
        self._ffi, self._libc = libc.calls()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._recording: Recording | None = None
        failed = {"mmap": libc.MAP_FAILED, "ggml_backend_tensor_set": None, LIST_SYMBOL: 0}
        # Kept as long as anybody may call them.
        self._stand_ins = {
            name: self._ffi_of(name).callback(
                SIGNATURES[name], getattr(self, f"_{name}"), error=failed.get(name, -1), onerror=keep
            )
            for name in (*SYMBOLS, LIST_SYMBOL, *(TENSOR_SYMBOLS if tensors is not None else ()))
        }
        self._functions = {
            name: int(self._ffi_of(name).cast("uintptr_t", function))
            for name, function in self._stand_ins.items()
        }

    @property
    def sees_tensors(self) -> bool:
        """Whether a host is told of tensors."""
        return self._tensors is not None

    def _ffi_of(self, name: str) -> Any:
        if name in TENSOR_SYMBOLS:
            assert self._tensors is not None, "its slots are used only where there is access"
            return self._tensors.ffi
        return self._llama.ffi if name == LIST_SYMBOL else self._ffi

    @contextmanager
    def hooked(
        self, host: Host | None = None, kept: Iterable[Mapping] = (), *, needs_tokens: bool = True
    ) -> Iterator[Recording]:
        """Point the slots at our functions; one load at a time. ``kept`` mappings are not unmapped."""
        with self._lock:
            recording = Recording(list(kept), host, needs_tokens)
            self._recording, self._thread = recording, threading.get_ident()
            try:
                with self._slots.pointing(self._functions):
                    yield recording
            finally:
                self._recording = self._thread = None

    def _recording_of_this_thread(self) -> Recording | None:
        return self._recording if self._thread == threading.get_ident() else None

    def _mmap(self, address: int, length: int, protection: int, flags: int, file: int, offset: int) -> int:
        recording = self._recording_of_this_thread()
        if recording is None or flags & MAP_ANONYMOUS or file < 0:
            return int(self._libc.mmap(address, length, protection, flags, file, offset))
        if offset == 0 and (own := self._asked(lambda host: host.map_file(file, length))):
            path = os.readlink(f"/proc/self/fd/{file}")
            recording.mappings.append(Mapping(own, length, path, kept=True))
            return own
        start = int(self._libc.mmap(address, length, protection, flags & ~MAP_POPULATE, file, offset))
        if start != libc.MAP_FAILED:
            # Weights are read through from end to end for each token: pages of 2 MiB spare a table walk every
            # 4 KiB, which is a tenth of the time. File systems without large folios, and kernels set to
            # never, ignore it.
            self._libc.madvise(start, length, mmap.MADV_HUGEPAGE)
            path = os.readlink(f"/proc/self/fd/{file}")
            recording.mappings.append(Mapping(start, length, path, offset))
        return start

    def _munmap(self, address: int, length: int) -> int:
        recording = self._recording_of_this_thread()
        if recording is not None and recording.keeps(address):
            return 0
        result = int(self._libc.munmap(address, length))
        if recording is not None and result == 0:
            recording.forget(address, length)
        return result

    def _posix_madvise(self, address: int, length: int, advice: int) -> int:
        if self._recording_of_this_thread() is not None:
            return 0
        return int(self._libc.posix_madvise(address, length, advice))

    def _ggml_backend_tensor_alloc(self, buffer: int, tensor: Any, address: int) -> int:
        access = self._tensors
        assert access is not None
        status = int(access.lib.ggml_backend_tensor_alloc(buffer, tensor, address))
        if status == 0:
            self._asked(lambda host: host.mapped(Tensor(access, tensor)))
        return status

    def _ggml_backend_tensor_set(self, tensor: Any, data: int, offset: int, size: int) -> None:
        access = self._tensors
        assert access is not None
        if offset == 0 and self._asked(lambda host: host.copying(Tensor(access, tensor), data)):
            return
        access.lib.ggml_backend_tensor_set(tensor, data, offset, size)

    def _gguf_get_arr_n(self, context: Any, key: int) -> int:
        lib, recording = self._llama.lib, self._recording_of_this_thread()
        if recording is not None and not recording.needs_tokens:
            name = self._llama.ffi.string(lib.gguf_get_key(context, key))
            if bytes(name).startswith(TOKENIZER_PREFIX):
                return 0
        return lib.gguf_get_arr_n(context, key)

    def _asked(self, question: Callable[[Host], T]) -> T | None:
        """What this thread's host says; None without one, and where it fails: then llama.cpp does its own."""
        recording = self._recording_of_this_thread()
        if recording is None or recording.host is None:
            return None
        try:
            return question(recording.host)
        except Exception:
            logger.exception("a tensor is loaded the ordinary way")
            return None


def find_hooks(llama: Llama) -> LoadHooks:
    """The hooks of a loaded libllama. Raises SlotsNotFound where they cannot be used."""
    if not sys.platform.startswith("linux"):
        raise SlotsNotFound("only Linux needs them")
    slots = Slots.find(llama.library_path, SYMBOLS, (*TENSOR_SYMBOLS, LIST_SYMBOL))
    seen = all(slots.addresses[symbol] for symbol in TENSOR_SYMBOLS)
    return LoadHooks(llama, slots, tensor_access() if seen else None)


@dataclass(frozen=True, slots=True)
class HookVerdict:
    """Whether loads of this process are lazy, and if not, why."""

    usable: bool
    reason: str
    hooks: LoadHooks | None


def hook_verdict() -> HookVerdict:
    """Look for the slots, once per process; one line in the log where loads will not be lazy."""
    with _searching:
        return _search_once()


@functools.cache
def _search_once() -> HookVerdict:
    try:
        return HookVerdict(True, "usable", find_hooks(load()))
    except SlotsNotFound as error:
        if sys.platform.startswith("linux"):
            logger.warning("lazy mapping is not available, models are read whole when opened: %s", error)
        return HookVerdict(False, str(error), None)


@contextmanager
def lazy_mapping(host: Host | None = None, *, needs_tokens: bool = True) -> Iterator[Recording]:
    """Make the loads of this thread inside the block lazy, where that is possible.

    Without ``needs_tokens`` they have to be told to do without a vocabulary.
    """
    verdict = hook_verdict()
    if verdict.hooks is None:
        yield Recording()
        return
    own = host if verdict.hooks.sees_tensors else None
    with verdict.hooks.hooked(own, needs_tokens=needs_tokens) as recording:
        yield recording


@contextmanager
def keeping(mappings: Iterable[Mapping]) -> Iterator[None]:
    """Leave the host's mappings in place while llama.cpp frees a model on this thread."""
    kept = [mapping for mapping in mappings if mapping.kept]
    hooks = hook_verdict().hooks if kept else None
    if hooks is None:
        yield
        return
    with hooks.hooked(kept=kept):
        yield
