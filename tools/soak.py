"""Open, evict, park and bring back eight models for minutes, and look for wrong tokens, pages and growth.

    .venv/bin/python -m tools.soak [--minutes 10] [--seed 1]

A server with memory for two models answers for eight: demo models, and small ones of every type that
llama.cpp repacks, a mixture of experts among them. Several clients ask at once; each answer is compared with
what a server without a packed store and with memory for all said before. Now and then everything is
unloaded, and what is left of it is counted. The exit status is 0 only if nothing was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from shardload.demo import demo_folder
from tools.bench.load import prompt
from tools.bench.pages import resident
from tools.bench.processes import ROOT, Target, models_of, shardload, stored
from tools.make_model import Size, write_model

MIB = 2**20
SIZE = Size(dim=512, layers=6, heads=8, kv_heads=2, ff=1536, vocabulary=600, ctx_tokens=1024)
MIXTURE = Size(dim=256, layers=4, heads=8, kv_heads=2, ff=512, vocabulary=600, ctx_tokens=1024, experts=8)
GENERATED = {
    "q4_0": (SIZE, "Q4_0"),
    "q4_k": (SIZE, "Q4_K"),
    "iq4_nl": (SIZE, "IQ4_NL"),
    "mxfp4": (SIZE, "MXFP4"),
    "q8_0": (SIZE, "Q8_0"),
    "experts": (MIXTURE, "Q4_K"),
}
DEMOS = ("fable", "pirate")
STORIES = (
    "Once upon a time there was",
    "Tell me about the sea and",
    "A fox met a crow who",
    "Who are you? I am",
)
CLIENTS, SLOTS, CTX_TOKENS, THREADS = 3, 2, 1024, 2
ANSWER_TOKENS = 8
CASES = 8
CANDIDATES = 60 * CLIENTS
CLEAR_MARGIN = 0.08
"""Kernels for other layouts differ in the last digits: only answers without a near tie can be compared."""
CYCLE_SECONDS = 25.0
LEFT_SHARE = 0.05
GROWTH_MIB = 16.0
WARM_UP = 0.3
SETTINGS = """
[parking]
memory = "8MiB"
disk = "64MiB"
idle = "2s"
"""
PLAIN_SETTINGS = """
[store]
enabled = false
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One question and the only right answer."""

    model: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Rest:
    """What a server without open models still has."""

    seconds: float
    anonymous_bytes: int
    mapped: tuple[str, ...]
    resident_bytes: int
    descriptors: int


@dataclass(slots=True)
class Findings:
    """What happened; written by several threads under the lock."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    evictions: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, case: Case, text: str) -> None:
        """Count an answer and judge it."""
        with self.lock:
            self.asked += 1
            if text != case.answer:
                self.wrong.append(f"{case.model} {case.prompt!r}: {text!r} instead of {case.answer!r}")

    def refused(self, case: Case, reason: str) -> None:
        """Note a request that had no answer."""
        with self.lock:
            self.failed.append(f"{case.model}: {reason}")


def make_models(folder: Path) -> dict[str, Path]:
    """The eight, by name."""
    models: dict[str, Path] = {}
    for name in DEMOS:
        models[name] = folder / f"{name}.gguf"
        shutil.copy(demo_folder() / models[name].name, models[name])
    for seed, (name, (size, kind)) in enumerate(GENERATED.items(), 1):
        models[name] = folder / f"{name}.gguf"
        write_model(models[name], size, kind=kind, seed=seed)
    return models


def post(target: Target, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request; raises OSError with what the server says."""
    request = urllib.request.Request(
        next(iter(target.urls.values())) + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            result: dict[str, Any] = json.load(answer)
            return result
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code}: {error.read().decode(errors='replace')}") from error


def complete(target: Target, model: str, text: str, **options: Any) -> dict[str, Any]:
    """A greedy completion: the first choice."""
    body = {"model": model, "prompt": text, "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
    choice: dict[str, Any] = post(target, "/v1/completions", body | options)["choices"][0]
    return choice


def references(target: Target, source: random.Random) -> list[Case]:
    """Questions of all lengths whose answers leave no doubt, each also with what could be said before it."""
    cases = []
    for name in target.names:
        texts = [_question(name, source) for _ in range(CANDIDATES)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda text: _clear_answer(target, name, text), texts))  # noqa: B023
        pairs = zip(texts, answers, strict=True)
        found = [Case(name, text, answer) for text, answer in pairs if answer is not None]
        if len(found) < 2:
            raise SystemExit(f"{name} is never sure of an answer: nothing can be compared")
        cases += found[:CASES]
    return cases


def _question(name: str, source: random.Random) -> str:
    words = source.choice((4, 20, 60, 120))
    begin = source.choice(STORIES) + " " if name in DEMOS else ""
    # Few beginnings, so that conversations come back to where they were.
    return begin + prompt(source.randrange(6), words) + " " + prompt(source.randrange(10**9), 6)


def _clear_answer(target: Target, name: str, text: str) -> str | None:
    choice = complete(target, name, text, logprobs=2)
    for likeliest in choice["logprobs"]["top_logprobs"]:
        values = sorted(likeliest.values())
        if len(values) < 2 or values[-1] - values[-2] < CLEAR_MARGIN:
            return None
    answer: str = choice["text"]
    return answer


def budget_for_two(target: Target) -> int:
    """What the two models that need most take when they are open."""
    needs = sorted(
        int(model["size_bytes"]) + int(model["private_bytes"]) + int(model["kv_bytes"])
        for model in models_of(target).values()
    )
    return sum(needs[-2:])


class Soak:
    """Clients that keep a server busy, and a look at it whenever it rests."""

    def __init__(self, target: Target, cases: Sequence[Case], files: Path, cache: Path, seed: int) -> None:
        self._target, self._cases, self._seed = target, cases, seed
        self._models, self._cache = files, cache
        self._process = psutil.Process(target.pid)
        self._started = time.monotonic()
        self.findings = Findings()

    def run(self, seconds: float) -> Findings:
        """Work and rest in turns."""
        cycle = 0
        while time.monotonic() - self._started < seconds:
            until = min(time.monotonic() + CYCLE_SECONDS, self._started + seconds)
            sources = [random.Random(f"{self._seed} {cycle} {client}") for client in range(CLIENTS)]
            with ThreadPoolExecutor(CLIENTS) as pool:
                # A client that fails in a way of its own ends the run.
                list(pool.map(lambda source: self._work(source, until), sources))  # noqa: B023
            models = models_of(self._target).values()
            self.findings.evictions = sum(int(model["evictions"]) for model in models)
            self._rest()
            cycle += 1
            self._report()
        return self.findings

    def _work(self, source: random.Random, until: float) -> None:
        while time.monotonic() < until:
            case = source.choice(self._cases)
            try:
                self.findings.answered(case, complete(self._target, case.model, case.prompt)["text"])
                if source.random() < 0.05:
                    post(self._target, "/models/unload", {"model": source.choice(self._cases).model})
            except (OSError, HTTPException, ValueError) as error:
                self.findings.refused(case, str(error))
            if source.random() < 0.02:
                time.sleep(3.0)  # long enough for what is idle to be parked

    def _rest(self) -> None:
        for name in self._target.names.values():
            post(self._target, "/models/unload", {"model": name})
        files = self._files()
        patterns = [re.escape(str(path)) for path in files]
        maps = Path(f"/proc/{self._target.pid}/maps").read_text()
        mapped = tuple(sorted(set(re.findall("|".join(patterns), maps))))
        status = Path(f"/proc/{self._target.pid}/status").read_text()
        anonymous = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        assert anonymous
        self.findings.rests.append(
            Rest(
                time.monotonic() - self._started,
                int(anonymous[1]) * 1024,
                mapped,
                resident(files),
                self._process.num_fds(),
            )
        )

    def _files(self) -> list[Path]:
        return [*self._models.glob("*.gguf"), *stored(self._cache)]

    def _report(self) -> None:
        found, rest = self.findings, self.findings.rests[-1]
        print(
            f"{rest.seconds:5.0f} s: {found.asked} answers, {len(found.wrong)} wrong,",
            f"{len(found.failed)} refused, {found.evictions} evictions; at rest",
            f"{rest.anonymous_bytes / MIB:.1f} MiB private, {len(rest.mapped)} files mapped,",
            f"{rest.resident_bytes / MIB:.1f} MiB of files in memory, {rest.descriptors} descriptors",
            flush=True,
        )


def growth_bytes(rests: Sequence[Rest]) -> float:
    """Private memory that the line through the rests gains between the first and the last, warm-up aside."""
    counted = [rest for rest in rests if rest.seconds >= WARM_UP * rests[-1].seconds]
    if len(counted) < 3:
        return 0.0
    seconds = np.array([rest.seconds for rest in counted])
    values = np.array([rest.anonymous_bytes for rest in counted], float)
    slope = float(np.polyfit(seconds, values, 1)[0])
    return slope * float(seconds[-1] - seconds[0])


def faults(found: Findings, total_bytes: int) -> list[str]:
    """Everything that was wrong, in sentences; empty where all is well."""
    said = [f"wrong: {text}" for text in found.wrong[:5]] + [f"refused: {text}" for text in found.failed[:5]]
    if not found.asked or not found.evictions:
        said.append(f"{found.asked} answers and {found.evictions} evictions prove nothing")
    last = found.rests[-1]
    if last.mapped:
        said.append(f"still mapped with no model open: {', '.join(last.mapped)}")
    if last.resident_bytes > LEFT_SHARE * total_bytes:
        said.append(f"{last.resident_bytes} bytes of files in memory with no model open")
    if (grown := growth_bytes(found.rests)) > GROWTH_MIB * MIB:
        said.append(f"private memory at rest grew by {grown / MIB:.1f} MiB")
    if last.descriptors > found.rests[0].descriptors + CLIENTS:
        said.append(f"descriptors grew from {found.rests[0].descriptors} to {last.descriptors}")
    return said


def main() -> int:
    """Soak for the time that the command line gives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = ROOT / "bench-models"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=folder) as made:
        files, cache, plain = (Path(made) / name for name in ("models", "cache", "plain"))
        for each in (files, cache, plain):
            each.mkdir()
        models = make_models(files)
        with shardload(
            models, threads=THREADS, slots=SLOTS, ctx_tokens=CTX_TOKENS, cache=plain, settings=PLAIN_SETTINGS
        ) as target:
            cases = references(target, random.Random(given.seed))
            budget = budget_for_two(target)
        print(f"{len(cases)} questions to {len(models)} models, {budget / MIB:.0f} MiB for two", flush=True)
        with shardload(
            models,
            threads=THREADS,
            slots=SLOTS,
            ctx_tokens=CTX_TOKENS,
            cache=cache,
            budget=str(budget),
            settings=SETTINGS,
        ) as target:
            found = Soak(target, cases, files, cache, given.seed).run(60 * given.minutes)
            total_bytes = sum(path.stat().st_size for path in files.iterdir())
    said = faults(found, total_bytes)
    for sentence in said or ["no wrong token, no page left, no growth"]:
        print(sentence)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
