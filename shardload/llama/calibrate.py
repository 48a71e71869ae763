"""How fast llama.cpp's kernels are on each order of bytes, measured here, for steps of every size.

Neither order is the best for everything, and which one wins depends on the type, the CPU and the build. It
takes a second for each type and all compute cores, so it runs while nobody waits for an answer:

    python -m shardload.llama.calibrate [--threads N] TYPE...
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from shardload.shards.layouts import LayoutTable, Speeds, encode_tables
from shardload_native.amx import avoid_traps, extra_buffer_types, extra_types
from shardload_native.library import Llama, load
from shardload_native.tensors import tensor_access

MEASURED = "measured"
"""Under what the table is printed."""
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
COLUMNS, ROWS = 2048, 4096
MATRICES = 24
"""More than caches hold: steps of few tokens are as fast as weights come from memory."""
WORK_TOKENS = 256
"""Matrices times tokens that one measured graph has at most, so that large steps take no longer."""
LEAST_SECONDS = 0.02
REPEATS = 3
CPU_DEVICE, TYPE_F32 = 0, 0
# As ggml names and numbers them.
TYPE_NUMBERS = {
    "q4_0": 2,
    "q8_0": 8,
    "q2_K": 10,
    "q4_K": 12,
    "q5_K": 13,
    "q6_K": 14,
    "iq4_nl": 20,
    "mxfp4": 39,
}


def calibrate(
    type_names: Sequence[str], threads: int, progress: Callable[[str, int], None] | None = None
) -> dict[str, Speeds]:
    """Measure the types that this build packs on this CPU; others are left out. Uses all threads.

    Speeds are tokens a second for weights of 200 million numbers.
    """
    llama = load()
    avoid_traps(llama)
    found: dict[str, Speeds] = {}
    for name in type_names:
        if name not in TYPE_NUMBERS:
            continue
        file: dict[int, float] = {}
        packed: dict[int, float] = {}
        for tokens in STEP_TOKENS:
            if progress is not None:
                progress(name, tokens)
            speeds = _measure(llama, TYPE_NUMBERS[name], tokens, threads)
            if speeds is None:
                break
            file[tokens], packed[tokens] = speeds
        if packed:
            found[name] = Speeds(file, packed)
    return found


def _measure(llama: Llama, type_number: int, tokens: int, threads: int) -> tuple[float, float] | None:
    """Tokens a second in both orders, in turn; None where there is no packed order for the type."""
    with (
        _bench(llama, type_number, tokens, threads, packed=False) as plain,
        _bench(llama, type_number, tokens, threads, packed=True) as packed,
    ):
        if plain is None or packed is None:
            return None
        pairs = [(_seconds(plain), _seconds(packed)) for _ in range(REPEATS)]
    work = tokens * _matrices(tokens) / MATRICES
    return work / min(first for first, _ in pairs), work / min(second for _, second in pairs)


def _matrices(tokens: int) -> int:
    return max(1, min(MATRICES, WORK_TOKENS // tokens))


def _seconds(compute: Callable[[], None]) -> float:
    """How long one run takes, over as many as are needed to tell."""
    runs, began = 0, time.perf_counter()
    while True:
        compute()
        runs += 1
        passed = time.perf_counter() - began
        if passed >= LEAST_SECONDS:
            return passed / runs


@contextmanager
def _bench(
    llama: Llama, type_number: int, tokens: int, threads: int, *, packed: bool
) -> Iterator[Callable[[], None] | None]:
    """A graph that multiplies several matrices with a step's activations, ready to be computed."""
    ffi, lib = llama.ffi, llama.lib
    buffer_types = _packed_types(llama)
    if packed and not buffer_types:
        yield None
        return
    matrices = _matrices(tokens)
    backend = lib.ggml_backend_init_by_type(CPU_DEVICE, ffi.NULL)
    _set_threads(llama, backend, threads)
    room = 4 * (matrices + 1) * lib.ggml_tensor_overhead() + 2 * lib.ggml_graph_overhead()
    settings = ffi.new("struct ggml_init_params *", {"mem_size": room, "no_alloc": True})[0]
    weights_context, graph_context = lib.ggml_init(settings), lib.ggml_init(settings)
    weights = [lib.ggml_new_tensor_2d(weights_context, type_number, COLUMNS, ROWS) for _ in range(matrices)]
    if packed:
        weights_buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(weights_context, buffer_types[0])
    else:
        weights_buffer = lib.ggml_backend_alloc_ctx_tensors(weights_context, backend)
    step = lib.ggml_new_tensor_2d(graph_context, TYPE_F32, COLUMNS, tokens)
    graph = lib.ggml_new_graph(graph_context)
    for tensor in weights:
        lib.ggml_build_forward_expand(graph, lib.ggml_mul_mat(graph_context, tensor, step))
    buffer = lib.ggml_backend_alloc_ctx_tensors(graph_context, backend)
    try:
        if packed and not all(_has_kernels(tensor) for tensor in weights):
            yield None
            return
        content = bytes(_nbytes(weights[0]))
        for tensor in weights:
            lib.ggml_backend_tensor_set(tensor, content, 0, len(content))
        ones = ffi.new("float[]", [1.0] * (COLUMNS * tokens))
        lib.ggml_backend_tensor_set(step, ones, 0, ffi.sizeof(ones))
        yield lambda: _compute(llama, backend, graph)
    finally:
        lib.ggml_backend_buffer_free(buffer)
        lib.ggml_backend_buffer_free(weights_buffer)
        lib.ggml_free(graph_context)
        lib.ggml_free(weights_context)
        lib.ggml_backend_free(backend)


def _compute(llama: Llama, backend: Any, graph: Any) -> None:
    if llama.lib.ggml_backend_graph_compute(backend, graph) != 0:
        raise RuntimeError("llama.cpp could not compute the measurement")


def _packed_types(llama: Llama) -> list[Any]:
    types = extra_types(llama)
    return [types[at] for at in range(len(extra_buffer_types(llama)))]


def _nbytes(tensor: Any) -> int:
    access = tensor_access()
    assert access is not None, "asked in _has_kernels"
    return access.tensor(tensor).nbytes


def _has_kernels(tensor: Any) -> bool:
    """Whether this build has a packed order for the tensor on this CPU."""
    access = tensor_access()
    return access is not None and access.tensor(tensor).words[2] != 0


def _set_threads(llama: Llama, backend: Any, threads: int) -> None:
    ffi, lib = llama.ffi, llama.lib
    device = lib.ggml_backend_dev_by_type(CPU_DEVICE)
    address = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_set_n_threads"
    )
    if address != ffi.NULL:
        ffi.cast("void (*)(void *, int)", address)(backend, threads)


def main(arguments: Sequence[str]) -> int:
    """Print what was measured as JSON: type, order, tokens of a step, tokens a second."""
    parser = argparse.ArgumentParser(description="Measure both orders of packed weights.")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("types", nargs="*", default=list(TYPE_NUMBERS))
    given = parser.parse_args(arguments)
    table = LayoutTable(calibrate(given.types, given.threads))
    print(encode_tables({MEASURED: table}).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
