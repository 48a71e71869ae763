"""What this machine's llama.cpp is and can do, for people who wonder why something is slow or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardload_native.amx import amx_verdict, extra_buffer_types
from shardload_native.hooks import hook_verdict
from shardload_native.library import load, text


@dataclass(frozen=True, slots=True)
class LlamaFacts:
    """The installed llama.cpp as it behaves here."""

    version: str
    """Of llama-cpp-python."""
    ggml_version: str
    library_path: str
    features: tuple[str, ...]
    """What its kernels were built for and found here: ``AVX2``, ``OPENMP`` ..."""
    gpu_offload: bool
    buffer_types: tuple[str, ...]
    """Layouts that weights may be copied into for speed."""
    amx: Literal["absent", "works", "traps"]
    amx_detail: str
    lazy_mapping: bool
    """Whether a model opens without being read."""
    lazy_mapping_detail: str
    maps_packed: bool = False
    """Whether packed weights can be mapped from files, in place of copies."""


def llama_facts() -> LlamaFacts:
    """Open llama.cpp and look; tries AMX in a child process where nobody has before.

    Raises UnsupportedLlama.
    """
    llama = load()
    amx, hooks = amx_verdict(), hook_verdict()
    return LlamaFacts(
        version=llama.version,
        ggml_version=llama.ggml_version,
        library_path=str(llama.library_path),
        features=parse_features(text(llama.ffi, llama.lib.llama_print_system_info())),
        gpu_offload=bool(llama.lib.llama_supports_gpu_offload()),
        buffer_types=tuple(extra_buffer_types(llama)),
        amx=amx.state,
        amx_detail=amx.detail,
        lazy_mapping=hooks.usable,
        lazy_mapping_detail=hooks.reason,
        maps_packed=hooks.hooks is not None and hooks.hooks.sees_tensors,
    )


def parse_features(line: str) -> tuple[str, ...]:
    """The names that llama.cpp's line of system information gives as 1: ``CPU : SSE3 = 1 | AVX = 0 |``."""
    pairs = (part.rpartition(":")[2].partition("=") for part in line.split("|"))
    return tuple(name.strip() for name, _, value in pairs if value.strip() == "1")
