"""Model files as llama.cpp loads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardload_native.library import Llama


def load_files(llama: Llama, paths: Sequence[Path], native_params: Any) -> Any:
    """A model in one file, or in all parts of a split one, in order; NULL where it fails, and the log why."""
    ffi, lib = llama.ffi, llama.lib
    names = [ffi.new("char[]", os.fsencode(path)) for path in paths]
    if len(names) == 1:
        return lib.llama_model_load_from_file(names[0], native_params)
    return lib.llama_model_load_from_splits(ffi.new("const char *[]", names), len(names), native_params)
