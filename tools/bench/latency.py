"""The rows about how soon something happens: the first token after a switch, and an open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, one, prompt
from tools.bench.pages import bring
from tools.bench.processes import ROOT, NotMeasurable, kept_in, shardload
from tools.make_model import Size, write_hollow_model

CTX_TOKENS = 2048
ASKS_PER_TURN = 6
TEN_GIGABYTES = Size(dim=4096, layers=40, heads=32, kv_heads=8, ff=14336, vocabulary=128_000)


def switching(setting: Setting) -> Iterator[Row]:
    """Seconds to the first token when every request goes to another open model, against always the same."""
    models = setting.only("a", "b", "c")
    with shardload(
        models, cache=setting.cache, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS
    ) as target:

        def seconds(names: list[str], turn: int) -> float:
            taken = []
            for index in range(ASKS_PER_TURN):
                name = names[index % len(names)]
                seed = (turn * ASKS_PER_TURN + index) * 4 + len(names)
                answer = one(Ask(target.urls[name], target.names[name], prompt(seed), 2))
                taken.append(answer.first_seconds)
            return median(taken)

        for name in models:
            one(Ask(target.urls[name], target.names[name], prompt(0), 2))
        first, second = paired(
            setting.repeats, lambda turn: seconds(list(models), turn), lambda turn: seconds(["a"], turn)
        )
    yield Row(
        "first token after switching to another open model, against staying",
        figure([1000 * value for value in first], "ms"),
        figure([1000 * value for value in second], "ms staying"),
        quotients(first, second),
        1.2,
        "lower",
    )


def opening(setting: Setting) -> Iterator[Row]:
    """Opening a model whose pages are warm, against llama.cpp's own load."""
    model = setting.models.plain()
    bring([model])
    touched: list[int] = []

    def ours(_turn: int) -> float:
        result = child("open", str(model))
        touched.append(int(result["touched_bytes"]))
        return float(result["seconds"])

    first, second = paired(setting.repeats, ours, lambda _turn: float(child("stock", str(model))["seconds"]))
    yield Row(
        "opening a model, pages warm, against llama_model_load_from_file",
        figure([1000 * value for value in first], "ms"),
        figure([1000 * value for value in second], "ms"),
        quotients(first, second),
        1.0,
        "lower",
        note=f"{max(touched)} bytes of weights touched by the open",
    )


def header(setting: Setting) -> Iterator[Row]:
    """Knowing a file of 10 GB by its header, which lists a vocabulary of 128,000 tokens."""
    model = setting.models.folder / "header.gguf"
    if not model.exists():
        write_hollow_model(model, TEN_GIGABYTES)
    beyond: list[int] = []

    def ours(_turn: int) -> float:
        result = child("header", str(model))
        beyond.append(int(result["read_beyond_bytes"]))
        return 1000 * float(result["seconds"])

    first, second = paired(
        setting.repeats, ours, lambda _turn: 1000 * float(child("reader", str(model))["seconds"])
    )
    yield Row(
        "header of a 10 GB file with 128,000 tokens, against the gguf package's reader",
        figure(first, "ms"),
        figure(second, "ms"),
        tuple(first),
        50.0,
        "lower",
        "ms",
        note=f"{max(beyond)} bytes read beyond it",
    )


def child(*arguments: str, cache: Path | None = None) -> dict[str, Any]:
    """Measure in a process of its own, whose memory nothing else has used."""
    script = Path(__file__).with_name("child.py")
    environment = {**os.environ, **(kept_in(cache) if cache else {})}
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if done.returncode != 0:
        raise NotMeasurable(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['died'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
