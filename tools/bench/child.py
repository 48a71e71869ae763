"""What is measured inside a fresh process: prints one JSON object.

child.py open MODEL      seconds of our open, and bytes of the file that this process has touched after it
child.py stock MODEL     seconds of llama.cpp's own load, with its defaults
child.py vocabulary MODEL    private bytes that a vocabulary costs
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil


def open_ours(model: Path) -> dict[str, float]:
    """Time our open; llama.cpp is loaded and initialised before."""
    from shardload.llama import Model
    from shardload_native.library import load

    load()
    started = time.perf_counter()
    with Model.open([model]) as opened:
        seconds = time.perf_counter() - started
        touched = touched_bytes(model)
        assert opened.n_vocab > 0
    return {"seconds": seconds, "touched_bytes": touched}


def open_stock(model: Path) -> dict[str, float]:
    """Time llama.cpp's load as any user of its API calls it."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    started = time.perf_counter()
    pointer = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    seconds = time.perf_counter() - started
    assert pointer
    llama_cpp.llama_model_free(pointer)
    return {"seconds": seconds}


def vocabulary(model: Path) -> dict[str, float]:
    """Private bytes before and after a vocabulary-only load."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    before = psutil.Process().memory_full_info().uss
    pointer = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    assert pointer
    return {"private_bytes": psutil.Process().memory_full_info().uss - before}


def touched_bytes(model: Path) -> int:
    """Bytes of the file that are mapped into this process by having been looked at."""
    maps = psutil.Process().memory_maps(grouped=False)
    parts = [part.rss for part in maps if Path(part.path) == model.resolve()]
    assert parts, "the file is not mapped"
    return sum(parts)


if __name__ == "__main__":
    work = {"open": open_ours, "stock": open_stock, "vocabulary": vocabulary}[sys.argv[1]]
    print(json.dumps(work(Path(sys.argv[2]))))
