"""llama.cpp as any user of its own interface has it, without its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def llama(*, avoid_amx: bool = False) -> Iterator[Any]:
    """The binding; ``avoid_amx`` has it go around an AMX that traps."""
    import llama_cpp

    if avoid_amx:
        from shardload_native.amx import avoid_traps
        from shardload_native.library import load

        avoid_traps(load())
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    # Here the callback lives as long as anything may be said.
    yield llama_cpp
