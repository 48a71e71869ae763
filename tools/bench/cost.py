"""The rows about what shardload itself costs: private memory per model, processor time per token."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tools.bench.figures import Row, Setting, figure
from tools.bench.load import Ask, one, prompt, together
from tools.bench.processes import shardload

MIB = 2**20
CTX_TOKENS = 2048
SLOTS = 8


def private_memory(setting: Setting) -> Iterator[Row]:
    """Anonymous memory per further open model that has answered briefly.

    They have the same tokenizer, which is there once, and of a KV cache only what was filled is in memory.
    """
    models = setting.only("a", "b", "c")
    added: list[float] = []
    with shardload(
        models, cache=setting.cache, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS
    ) as target:
        one(Ask(target.urls["a"], target.names["a"], prompt(0), 4))
        before = private_bytes(target.pid)
        for name in ("b", "c"):
            one(Ask(target.urls[name], target.names[name], prompt(1), 4))
            after = private_bytes(target.pid)
            added.append((after - before) / MIB)
            before = after
    yield Row(
        "private memory per further open model of the same tokenizer, a short answer each, ctx 2048",
        figure(added, "MiB"),
        "",
        tuple(added),
        60.0,
        "lower",
        "MiB",
    )


def private_bytes(pid: int) -> int:
    """What no other process shares and no file stands behind."""
    return sum(part.anonymous for part in psutil.Process(pid).memory_maps(grouped=False))


def python_time(setting: Setting) -> Iterator[Row]:
    """Processor time of the whole process without what llama.cpp spends, with a model of one thin layer."""
    models = {"a": setting.models.tiny()}
    tokens = setting.tokens * 4
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        meter = Path(folder) / "meter"
        meter.write_bytes(bytes(8))
        command = (str(Path(__file__).with_name("counted.py")), str(meter))
        with shardload(
            models, cache=setting.cache, threads=1, slots=SLOTS, ctx_tokens=4096, command=command
        ) as target:
            for turn in range(setting.repeats + 1):
                asks = [
                    Ask(target.urls["a"], target.names["a"], prompt(turn * SLOTS + index), tokens)
                    for index in range(SLOTS)
                ]
                before = python_seconds(target.pid, meter)
                together(asks)
                if turn:
                    spent.append(1e6 * (python_seconds(target.pid, meter) - before) / (tokens * SLOTS))
    yield Row(
        "processor time of our Python per generated token, 8 streams",
        figure(spent, "µs"),
        "",
        tuple(spent),
        100.0,
        "lower",
        "µs",
        note="all of the process, HTTP and system calls too, without llama.cpp",
    )


def python_seconds(pid: int, meter: Path) -> float:
    """Processor seconds of the process so far that were not spent inside llama.cpp."""
    times = psutil.Process(pid).cpu_times()
    inside: float = struct.unpack("d", meter.read_bytes())[0]
    return times.user + times.system - inside
