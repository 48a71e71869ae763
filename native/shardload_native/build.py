"""What decides how llama.cpp packs weights: its CPU library, byte for byte, and what it finds in this CPU."""

from __future__ import annotations

import functools
import hashlib

from shardload_native.library import load, text


@functools.cache
def packing_build() -> str:
    """A key that changes with anything that could change packed bytes; takes a few milliseconds, once."""
    llama = load()
    digest = hashlib.sha256()
    features = text(llama.ffi, llama.lib.llama_print_system_info())
    digest.update(f"{llama.version}\n{llama.ggml_version}\n{features}\n".encode())
    for library in sorted(llama.library_path.parent.glob("*ggml-cpu*")):
        if not library.is_symlink():
            digest.update(library.name.encode() + library.read_bytes())
    return digest.hexdigest()[:32]
