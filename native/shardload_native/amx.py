"""Whether AMX works here, and the way around it where it is advertised and traps.

Some virtual machines show AMX in their CPU flags and raise SIGILL when it is used. llama.cpp copies
quantised weights into an AMX layout only when it may use extra buffer types, so the question comes up only
then. It is answered in a child process, which may die of it, once for each build and CPU:

    python -m shardload_native.amx [BUFFER_TYPE]
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardload.folders import cache_folder
from shardload_native.library import Llama, load, text

logger = logging.getLogger("shardload.llama")

State = Literal["absent", "works", "traps"]
BUFFER_TYPE = "AMX"
PROBE_SECONDS = 120
WRONG_RESULT = 3
"""What the probe ends with where it computed something else than it should; 1 is any exception."""
FATAL = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE")
# What else ends the probe is a want of memory, of which ggml aborts, or of time, and may have passed.
LASTING = {WRONG_RESULT, *(-getattr(signal, name) for name in FATAL if hasattr(signal, name))}
CPU_DEVICE, GGML_TYPE_Q4_0, GGML_TYPE_F32 = 0, 2, 0
Q4_0_BLOCK_WEIGHTS = 32
COLUMNS, ROWS = 512, 64


@dataclass(frozen=True, slots=True)
class AmxVerdict:
    """What is known of AMX on this machine with this build of llama.cpp."""

    state: State
    detail: str
    lasting: bool = True
    """Whether the next process would find the same."""


def avoid_traps(llama: Llama) -> AmxVerdict:
    """Take AMX away from llama.cpp, for this process, where it traps. Any thread, before a load."""
    verdict = amx_verdict()
    if verdict.state == "traps" and BUFFER_TYPE in extra_buffer_types(llama):
        logger.warning("AMX is advertised and does not work (%s): it is left out", verdict.detail)
        drop_buffer_type(llama, BUFFER_TYPE)
    return verdict


@functools.cache
def amx_verdict() -> AmxVerdict:
    """Whether AMX is there and works; runs the probe at most once for each build and CPU."""
    llama = load()
    if BUFFER_TYPE not in extra_buffer_types(llama):
        return AmxVerdict("absent", "this build of llama.cpp or this CPU has no AMX")
    return remembered(cache_file(), build_and_cpu(llama), lambda: probe(BUFFER_TYPE))


def extra_buffer_types(llama: Llama) -> list[str]:
    """The names of the buffer types that weights may be copied into."""
    types = extra_types(llama)
    names: list[str] = []
    while types[len(names)] != llama.ffi.NULL:
        names.append(text(llama.ffi, llama.lib.ggml_backend_buft_name(types[len(names)])))
    return names


def drop_buffer_type(llama: Llama, name: str) -> None:
    """Take a type out of the list that llama.cpp chooses from, for the life of the process."""
    types = extra_types(llama)
    names = extra_buffer_types(llama)
    kept = [types[at] for at, one in enumerate(names) if one != name]
    for at in range(len(names)):
        types[at] = kept[at] if at < len(kept) else llama.ffi.NULL


def extra_types(llama: Llama) -> Any:
    """The CPU device's own array of extra buffer types, ended by NULL."""
    ffi, lib = llama.ffi, llama.lib
    device = lib.ggml_backend_dev_by_type(CPU_DEVICE)
    getter = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    if getter == ffi.NULL:
        return ffi.new("ggml_backend_buffer_type_t[1]")
    return ffi.cast("ggml_backend_dev_get_extra_bufts_t", getter)(device)


def probe(buffer_type: str) -> AmxVerdict:
    """Multiply with a buffer type in a child process. Any way of failing counts as a trap."""
    command = [sys.executable, "-m", "shardload_native.amx", buffer_type]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return AmxVerdict("traps", f"the probe did not finish: {error}", lasting=False)
    if child.returncode == 0:
        return AmxVerdict("works", "the probe multiplied")
    lasting = child.returncode in LASTING
    if child.returncode < 0:
        return AmxVerdict("traps", f"the probe died of signal {-child.returncode}", lasting)
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    return AmxVerdict("traps", f"the probe failed: {last}", lasting)


def cache_file() -> Path:
    """Where verdicts are remembered."""
    return cache_folder() / "amx.json"


def build_and_cpu(llama: Llama) -> str:
    """A key that changes with everything that could change the verdict."""
    facts = [llama.version, llama.ggml_version]
    for library in sorted(llama.library_path.parent.glob("*ggml*")):
        status = library.stat()
        facts.append(f"{library.name} {status.st_size} {status.st_mtime_ns}")
    try:
        with open("/proc/cpuinfo") as lines:
            wanted = ("model name", "stepping", "microcode", "flags")
            facts += sorted({line.strip() for line in lines if line.startswith(wanted)})
        facts.append(os.uname().release)
    except (OSError, AttributeError):
        facts.append(sys.platform)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def remembered(path: Path, key: str, ask: Callable[[], AmxVerdict]) -> AmxVerdict:
    """The verdict kept under ``key``; asked for when there is none that can be read, and kept if it lasts."""
    known = _read(path)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("state") in ("works", "traps"):
        return AmxVerdict(entry["state"], str(entry.get("detail", "")))
    verdict = ask()
    if not verdict.lasting:
        return verdict
    known[key] = {"state": verdict.state, "detail": verdict.detail}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(known, file)
        os.replace(file.name, path)
    except OSError as error:
        logger.info("the AMX verdict cannot be kept in %s: %s", path, error)
    return verdict


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def multiply(llama: Llama, buffer_type: str) -> list[float]:
    """A quantised matrix in a buffer type times ones: each sum is the number of columns."""
    ffi, lib = llama.ffi, llama.lib
    at = extra_buffer_types(llama).index(buffer_type)
    backend = lib.ggml_backend_init_by_type(CPU_DEVICE, ffi.NULL)
    room = 16 * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead()
    settings = ffi.new("struct ggml_init_params *", {"mem_size": room, "no_alloc": True})[0]
    weights_context, graph_context = lib.ggml_init(settings), lib.ggml_init(settings)
    weights = lib.ggml_new_tensor_2d(weights_context, GGML_TYPE_Q4_0, COLUMNS, ROWS)
    weights_buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(weights_context, extra_types(llama)[at])
    # Each block: scale 1.0 in half precision, then 32 weights of 9 - 8 = 1.
    blocks = b"\x00\x3c" + b"\x99" * (Q4_0_BLOCK_WEIGHTS // 2)
    content = blocks * (COLUMNS * ROWS // Q4_0_BLOCK_WEIGHTS)
    lib.ggml_backend_tensor_set(weights, content, 0, len(content))
    results: list[float] = []
    for batch in (1, 32):
        ones = lib.ggml_new_tensor_2d(graph_context, GGML_TYPE_F32, COLUMNS, batch)
        product = lib.ggml_mul_mat(graph_context, weights, ones)
        graph = lib.ggml_new_graph(graph_context)
        lib.ggml_build_forward_expand(graph, product)
        buffer = lib.ggml_backend_alloc_ctx_tensors(graph_context, backend)
        values = ffi.new("float[]", [1.0] * (COLUMNS * batch))
        lib.ggml_backend_tensor_set(ones, values, 0, ffi.sizeof(values))
        if lib.ggml_backend_graph_compute(backend, graph) != 0:
            raise RuntimeError("the computation failed")
        sums = ffi.new("float[]", ROWS * batch)
        lib.ggml_backend_tensor_get(product, sums, 0, ffi.sizeof(sums))
        results += list(sums)
        lib.ggml_backend_buffer_free(buffer)
        lib.ggml_free(graph_context)
        graph_context = lib.ggml_init(settings)
    lib.ggml_free(graph_context)
    lib.ggml_backend_buffer_free(weights_buffer)
    lib.ggml_free(weights_context)
    lib.ggml_backend_free(backend)
    return results


def main(arguments: list[str]) -> int:
    """The child's side of the probe."""
    results = multiply(load(), arguments[0] if arguments else BUFFER_TYPE)
    if any(abs(result - COLUMNS) > 1 for result in results):
        print(f"wrong result: {results[0]} instead of {COLUMNS}", file=sys.stderr)
        return WRONG_RESULT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
