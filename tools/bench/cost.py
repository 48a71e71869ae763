"""The rows about what shardload itself costs: private memory per model, processor time per token."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import psutil

from tools.bench.figures import Row, Setting, figure
from tools.bench.latency import child
from tools.bench.load import Ask, one, prompt, together
from tools.bench.processes import Target, shardload

MIB = 2**20
CTX_TOKENS = 2048
SLOTS = 8


def private_memory(setting: Setting) -> Iterator[Row]:
    """Anonymous memory per further open model, without its KV cache and vocabulary."""
    models = setting.only("a", "b", "c")
    vocabulary = child("vocabulary", str(setting.models["a"]))["private_bytes"]
    added: list[float] = []
    with shardload(models, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS) as target:
        one(Ask(target.urls["a"], target.names["a"], prompt(0), 4))
        before = private_bytes(target.pid)
        for name in ("b", "c"):
            one(Ask(target.urls[name], target.names[name], prompt(1), 4))
            after = private_bytes(target.pid)
            added.append((after - before - kv_bytes(target, name) - vocabulary) / MIB)
            before = after
    yield Row(
        "private memory per further open model, ctx 2048, beside KV and vocabulary",
        figure(added, "MiB"),
        "",
        tuple(added),
        60.0,
        "lower",
        "MiB",
        note=f"its vocabulary: {vocabulary / MIB:.0f} MiB",
    )


def private_bytes(pid: int) -> int:
    """What no other process shares and no file stands behind."""
    return sum(part.anonymous for part in psutil.Process(pid).memory_maps(grouped=False))


def kv_bytes(target: Target, name: str) -> int:
    """What the server says that the model's KV cache takes."""
    with urllib.request.urlopen(f"{target.urls[name]}/models") as answer:
        models = json.load(answer)["models"]
    return next(int(model["kv_bytes"]) for model in models if model["name"] == target.names[name])


def python_time(setting: Setting) -> Iterator[Row]:
    """Processor time per token with a model so small that what remains is ours."""
    models = {"a": setting.tiny_model}
    spent: list[float] = []
    with shardload(models, threads=1, slots=SLOTS, ctx_tokens=4096) as target:
        process = psutil.Process(target.pid)
        tokens = 400
        for turn in range(setting.repeats + 1):
            asks = [
                Ask(target.urls["a"], target.names["a"], prompt(turn * SLOTS + index), tokens)
                for index in range(SLOTS)
            ]
            before, computed = process.cpu_times(), compute_seconds(target)
            together(asks)
            after = process.cpu_times()
            seconds = after.user + after.system - before.user - before.system
            seconds -= compute_seconds(target) - computed
            if turn:
                spent.append(1e6 * seconds / (tokens * SLOTS))
    yield Row(
        "processor time of our Python per generated token, 8 streams",
        figure(spent, "µs"),
        "",
        tuple(spent),
        100.0,
        "lower",
        "µs",
        note="all of the process but llama_decode, on one thread",
    )


def compute_seconds(target: Target) -> float:
    """Seconds that the server's lane has spent inside llama.cpp so far."""
    with urllib.request.urlopen(f"{target.urls['a']}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("shardload_compute_seconds_total")
    )
