"""Which memory llama.cpp takes for the KV cache of a context, and none before it is used.

While a context is made on this thread, the slots through which libllama calls
`ggml_backend_alloc_ctx_tensors_from_buft` point at a function of ours, which calls it and notes the buffer.
Then llama.cpp fills it with zeros, which takes 0.4 seconds for a GiB and makes all of it resident: those of
`ggml_backend_buffer_clear` point at a function that has the system do it, page by page as they are used. The
slots are put back afterwards. Where there are none, nothing is noted.
"""

from __future__ import annotations

import functools
import logging
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shardload_native import libc
from shardload_native.got import SlotsNotFound
from shardload_native.library import Llama, load
from shardload_native.slots import Slots

logger = logging.getLogger("shardload.llama")

# Two sets of stand-ins would each take the other's functions for the original ones.
_searching = threading.Lock()

SYMBOL = "ggml_backend_alloc_ctx_tensors_from_buft"
CLEAR_SYMBOL = "ggml_backend_buffer_clear"
SIGNATURE = "ggml_backend_buffer_t(struct ggml_context *, ggml_backend_buffer_type_t)"
CLEAR_SIGNATURE = "void(ggml_backend_buffer_t, uint8_t)"
Buffers = list[tuple[int, int]]
"""Address and length of each."""


class BufferHook:
    """The slots of one libllama and the functions that stand in; one per process."""

    def __init__(self, llama: Llama, slots: Slots) -> None:
        self._llama, self._slots = llama, slots
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._noted: Buffers = []
        ffi = llama.ffi
        # Kept as long as anybody may call them.
        self._stand_ins = {
            SYMBOL: ffi.callback(SIGNATURE, self._allocate, error=ffi.NULL),
            CLEAR_SYMBOL: ffi.callback(CLEAR_SIGNATURE, self._clear),
        }
        self._functions = {
            name: int(ffi.cast("uintptr_t", function)) for name, function in self._stand_ins.items()
        }

    @contextmanager
    def recording(self) -> Iterator[Buffers]:
        """Note what this thread allocates; one at a time."""
        with self._lock:
            self._noted, self._thread = [], threading.get_ident()
            try:
                with self._slots.pointing(self._functions):
                    yield self._noted
            finally:
                self._thread = None

    def _allocate(self, context: Any, buffer_type: Any) -> Any:
        ffi, lib = self._llama.ffi, self._llama.lib
        # Not through the slot: before the first call it holds what would put the real address into it.
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        is_ours = self._thread == threading.get_ident()
        if is_ours and buffer != ffi.NULL and lib.ggml_backend_buffer_is_host(buffer):
            base = int(ffi.cast("uintptr_t", lib.ggml_backend_buffer_get_base(buffer)))
            self._noted.append((base, int(lib.ggml_backend_buffer_get_size(buffer))))
        return buffer

    def _clear(self, buffer: Any, value: int) -> None:
        """Zeros come from the system, as pages are used; anything else is llama.cpp's own work."""
        ffi, lib = self._llama.ffi, self._llama.lib
        if self._thread == threading.get_ident() and value == 0 and lib.ggml_backend_buffer_is_host(buffer):
            base = int(ffi.cast("uintptr_t", lib.ggml_backend_buffer_get_base(buffer)))
            length = int(lib.ggml_backend_buffer_get_size(buffer))
            if (base, length) in self._noted and self._zero(base, length):
                return
        lib.ggml_backend_buffer_clear(buffer, value)

    def _zero(self, base: int, length: int) -> bool:
        start = -(-base // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (base + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end <= start:
            return False
        try:
            libc.madvise(start, end - start, mmap.MADV_DONTNEED)
        except OSError:
            return False
        for edge, after in ((base, start), (end, base + length)):
            self._llama.ffi.memmove(self._llama.ffi.cast("char *", edge), bytes(after - edge), after - edge)
        return True


@contextmanager
def recorded_buffers() -> Iterator[Buffers]:
    """Note where the KV cache of a context is that is made in this block; nothing where that is not seen.

    The list is complete at the end of the block, and good for as long as the context is open.
    """
    hook = _hook()
    if hook is None:
        yield []
        return
    with hook.recording() as noted:
        yield noted


def _hook() -> BufferHook | None:
    with _searching:
        return _search_once()


@functools.cache
def _search_once() -> BufferHook | None:
    if not sys.platform.startswith("linux"):
        return None
    llama = load()
    try:
        return BufferHook(llama, Slots.find(llama.library_path, (SYMBOL,), (CLEAR_SYMBOL,)))
    except (SlotsNotFound, OSError) as error:
        logger.info("the memory of idle KV caches is not given back: %s", error)
        return None
