"""The shardload command with a meter on llama.cpp: processor seconds inside it, kept in a file of 8 bytes.

counted.py METER serve ...
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

METERED = frozenset(
    {
        "llama_decode",
        "llama_encode",
        "llama_sampler_apply",
        "llama_sampler_sample",
        "llama_tokenize",
    }
)


class Meter:
    """Stands before the library's functions; the time of the metered ones counts as llama.cpp's."""

    def __init__(self, library: Any, cell: mmap.mmap) -> None:
        self._library, self._cell = library, cell
        self._seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        found = self._metered(function) if name in METERED else function
        setattr(self, name, found)
        return found

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.thread_time()
            result = function(*arguments)
            self._seconds += time.thread_time() - began
            struct.pack_into("d", self._cell, 0, self._seconds)
            return result

        return call


def main() -> None:
    """Put the meter in place and run the command."""
    from shardload_native.library import load
    from shardload_server.cli import main as command

    path = sys.argv.pop(1)
    with open(path, "r+b") as file:
        cell = mmap.mmap(file.fileno(), 8)
    llama = load()
    object.__setattr__(llama, "lib", Meter(llama.lib, cell))
    command()


if __name__ == "__main__":
    main()
