"""What is measured inside a fresh process: prints one JSON object.

child.py open MODEL      seconds of our open, and bytes of the file that this process has touched after it
child.py stock MODEL     seconds of llama.cpp's own load, with its defaults
child.py packed MODEL    seconds until the library has the model open, with a context, from the packed store
child.py repacked MODEL  seconds of llama.cpp's own load with repacking, and of a context as large
child.py layouts MODEL THREADS   measures the orders of bytes that are not known yet for the model's types
child.py header MODEL    seconds in which we know a file by its header, and bytes beyond it that were read
child.py reader MODEL    seconds of the gguf package's reader for the same file
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tools.bench.stock import llama

CTX_TOKENS = 2048


def open_ours(model: Path) -> dict[str, float]:
    """Time our open; what a process does once, loading llama.cpp and finding its slots, is done before."""
    from shardload.llama import Model
    from shardload_native.hooks import hook_verdict
    from shardload_native.library import load

    load()
    hook_verdict()
    started = time.perf_counter()
    with Model.open([model]) as opened:
        seconds = time.perf_counter() - started
        touched = touched_bytes(model)
        assert opened.n_vocab > 0
    return {"seconds": seconds, "touched_bytes": touched}


def open_stock(model: Path) -> dict[str, float]:
    """Time llama.cpp's load as any user of its API calls it."""
    with llama() as api:
        started = time.perf_counter()
        pointer = api.llama_model_load_from_file(str(model).encode(), api.llama_model_default_params())
        seconds = time.perf_counter() - started
        assert pointer
        api.llama_model_free(pointer)
    return {"seconds": seconds}


def open_packed(model: Path) -> dict[str, float]:
    """Time an open through the library; what a process does once is done before, with another model."""
    import shardload

    tiny = model.with_name("tiny.gguf")
    with shardload.Manager([model, tiny], ctx=CTX_TOKENS, slots=1) as manager:
        manager.generate(tiny.stem, "a", max_tokens=1)
        started = time.perf_counter()
        manager.load(model.stem)
        seconds = time.perf_counter() - started
        assert manager.generate(model.stem, "a", max_tokens=1).usage.completion_tokens == 1
    return {"seconds": seconds}


def open_repacked(model: Path) -> dict[str, float]:
    """Time llama.cpp's load and a context, as any user of its API makes them."""
    with llama(avoid_amx=True) as api:
        settings = api.llama_context_default_params()
        settings.n_ctx = CTX_TOKENS
        started = time.perf_counter()
        weights = api.llama_model_load_from_file(str(model).encode(), api.llama_model_default_params())
        context = api.llama_init_from_model(weights, settings)
        seconds = time.perf_counter() - started
        assert context
    return {"seconds": seconds}


def layouts(model: Path, threads: str) -> dict[str, float]:
    """Measure what a server would measure behind its first answer."""
    from shardload.gguf import GGUFFile
    from shardload.llama.calibrate import TYPE_NUMBERS
    from shardload.llama.layout_choice import LayoutChoice, default_path
    from shardload.shards.pantry import packing_build

    with GGUFFile(model) as opened:
        types = [name for name in TYPE_NUMBERS if name.upper() in opened.quantization]
    choice = LayoutChoice(default_path(), packing_build(), int(threads))
    choice.measure(types, is_busy=lambda: False, stops=lambda: False)
    return {name: choice.table.speeds[name.upper()].seconds_per_token("file", 256) for name in types}


def header(model: Path) -> dict[str, float]:
    """Time our parser; nothing of the file but its header may come into memory."""
    from shardload.gguf import GGUFFile
    from shardload.memory import file_resident_bytes

    before = file_resident_bytes(model) or 0
    started = time.perf_counter()
    with GGUFFile(model) as opened:
        seconds = time.perf_counter() - started
        assert opened.vocabulary_size
        header_bytes = opened.header_bytes[0]
    read_bytes = (file_resident_bytes(model) or 0) - before
    return {"seconds": seconds, "read_beyond_bytes": max(read_bytes - header_bytes, 0)}


def reader(model: Path) -> dict[str, float]:
    """Time the gguf package's reader."""
    from gguf import GGUFReader

    started = time.perf_counter()
    opened = GGUFReader(model)
    seconds = time.perf_counter() - started
    assert opened.tensors
    return {"seconds": seconds}


def touched_bytes(model: Path) -> int:
    """Bytes of the file that are mapped into this process by having been looked at."""
    maps = psutil.Process().memory_maps(grouped=False)
    parts = [part.rss for part in maps if Path(part.path) == model.resolve()]
    assert parts, "the file is not mapped"
    return sum(parts)


if __name__ == "__main__":
    work: dict[str, Callable[..., dict[str, float]]] = {
        "open": open_ours,
        "stock": open_stock,
        "packed": open_packed,
        "repacked": open_repacked,
        "layouts": layouts,
        "header": header,
        "reader": reader,
    }
    print(json.dumps(work[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
