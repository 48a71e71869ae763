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
from shardload_native.got import SlotsNotFound, find_slots, read_regions
from shardload_native.library import Llama, load

logger = logging.getLogger("shardload.llama")

SYMBOL = "ggml_backend_alloc_ctx_tensors_from_buft"
CLEAR_SYMBOL = "ggml_backend_buffer_clear"
SIGNATURE = "ggml_backend_buffer_t(struct ggml_context *, ggml_backend_buffer_type_t)"
CLEAR_SIGNATURE = "void(ggml_backend_buffer_t, uint8_t)"
PROT_READ, PROT_WRITE = 1, 2
MADV_DONTNEED = 4
Buffers = list[tuple[int, int]]
"""Address and length of each."""


class BufferHook:
    """The slots of one libllama and the functions that stand in; one per process."""

    def __init__(self, llama: Llama, slots: list[int], clear_slots: list[int], read_only: set[int]) -> None:
        self._llama, self._slots, self._read_only = llama, [*slots, *clear_slots], read_only
        self._clear_slots = frozenset(clear_slots)
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._noted: Buffers = []
        self._stand_in = llama.ffi.callback(SIGNATURE, self._allocate, error=llama.ffi.NULL)
        self._clear_stand_in = llama.ffi.callback(CLEAR_SIGNATURE, self._clear)

    @contextmanager
    def recording(self) -> Iterator[Buffers]:
        """Note what this thread allocates; one at a time."""
        with self._lock:
            self._noted, self._thread = [], threading.get_ident()
            saved = {slot: self._read(slot) for slot in self._slots}
            try:
                for slot in self._slots:
                    stand_in = self._clear_stand_in if slot in self._clear_slots else self._stand_in
                    self._write(slot, int(self._llama.ffi.cast("uintptr_t", stand_in)))
                yield self._noted
            finally:
                for slot, address in saved.items():
                    self._write(slot, address)
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
            libc.madvise(start, end - start, MADV_DONTNEED)
        except OSError:
            return False
        for edge, after in ((base, start), (end, base + length)):
            self._llama.ffi.memmove(self._llama.ffi.cast("char *", edge), bytes(after - edge), after - edge)
        return True

    def _read(self, slot: int) -> int:
        return int(self._llama.ffi.cast("uintptr_t *", slot)[0])

    def _write(self, slot: int, address: int) -> None:
        if slot in self._read_only:
            _protect(slot, PROT_READ | PROT_WRITE)
        self._llama.ffi.cast("uintptr_t *", slot)[0] = address
        if slot in self._read_only:
            _protect(slot, PROT_READ)


def _protect(slot: int, protection: int) -> None:
    libc.mprotect(slot & ~(mmap.PAGESIZE - 1), mmap.PAGESIZE, protection)


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


@functools.cache
def _hook() -> BufferHook | None:
    if not sys.platform.startswith("linux"):
        return None
    llama = load()
    try:
        return _find(llama)
    except (SlotsNotFound, OSError) as error:
        logger.info("the memory of idle KV caches is not given back: %s", error)
        return None


def _find(llama: Llama) -> BufferHook:
    found = find_slots(llama.library_path, (SYMBOL, CLEAR_SYMBOL))
    slots, clear_slots = found[SYMBOL], found[CLEAR_SYMBOL]
    if not slots:
        raise SlotsNotFound(f"{llama.library_path.name} does not call {SYMBOL}")
    regions = read_regions()
    read_only = set()
    for slot in (*slots, *clear_slots):
        places = [region for region in regions if region.start <= slot < region.end]
        if not places:
            raise SlotsNotFound(f"slot {slot:#x} is not mapped")
        if "w" not in places[0].permissions:
            read_only.add(slot)
    hook = BufferHook(llama, slots, clear_slots, read_only)
    for slot in (*slots, *clear_slots):
        function = hook._read(slot)
        if not any(region.start <= function < region.end and "x" in region.permissions for region in regions):
            raise SlotsNotFound(f"slot {slot:#x} of {llama.library_path.name} holds no function")
        hook._write(slot, function)
    return hook
