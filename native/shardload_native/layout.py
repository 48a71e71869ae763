"""Proof that our declarations describe the structures of the installed build."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

from shardload.errors import UnsupportedLlama
from shardload_native.declarations import HEADER_DIGESTS

STRUCTURES = (
    "llama_model_params",
    "llama_model_kv_override",
    "llama_context_params",
    "llama_batch",
    "llama_token_data",
    "llama_token_data_array",
    "llama_logit_bias",
    "llama_sampler_chain_params",
)


def check_layout(ffi: Any, package: Path) -> None:
    """Raise UnsupportedLlama unless the installed structures are those that we declare.

    Where the headers are installed and are byte for byte those that the declarations were made from,
    that is the proof and costs a millisecond. Elsewhere llama-cpp-python's own structures are compared
    field by field, which means importing it (a quarter of a second).
    """
    if not headers_match(package.parent / "include"):
        differences = compare_structures(ffi)
        if differences:
            raise UnsupportedLlama(
                "the installed llama-cpp-python lays out its structures differently than shardload "
                f"expects: {'; '.join(differences)}"
            )


def headers_match(directory: Path) -> bool:
    """Whether the headers in ``directory`` are those of our declarations."""
    try:
        return all(
            hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
            for name, digest in HEADER_DIGESTS.items()
        )
    except OSError:
        return False


def compare_structures(ffi: Any) -> list[str]:
    """What differs between our structures and llama-cpp-python's: names, sizes, offsets."""
    from llama_cpp import llama_cpp

    found = []
    for name in STRUCTURES:
        theirs = getattr(llama_cpp, name)
        ours = ffi.typeof(name if name.startswith(("llama_token", "llama_logit")) else f"struct {name}")
        our_fields = {field: (detail.offset, ffi.sizeof(detail.type)) for field, detail in ours.fields}
        their_fields = _places(theirs, 0)
        if ffi.sizeof(ours) != ctypes.sizeof(theirs):
            found.append(f"{name} has {ctypes.sizeof(theirs)} bytes, expected {ffi.sizeof(ours)}")
        found += [
            f"{name}.{field} is at {their_fields.get(field)}, expected {place}"
            for field, place in our_fields.items()
            if their_fields.get(field) != place
        ]
    return found


def _places(structure: Any, base: int) -> dict[str, tuple[int, int]]:
    """Offset and size of each field; the members of a union, which has no name in C, stand for it."""
    places: dict[str, tuple[int, int]] = {}
    for name, kind, *_ in structure._fields_:
        detail = getattr(structure, name)
        if isinstance(kind, type) and issubclass(kind, ctypes.Union):
            places |= _places(kind, base + detail.offset)
        else:
            places[name] = (base + detail.offset, detail.size)
    return places
