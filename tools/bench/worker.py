"""Pure speed without HTTP: one model in a process of its own that computes when it is told to.

python -m tools.bench.worker ours MODEL        through the library, as `shardload.Manager` serves it
python -m tools.bench.worker repacked MODEL    llama.cpp's own load, with its defaults
python -m tools.bench.worker mapped MODEL      llama.cpp's own load without repacking
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tools.bench.load import token_prompt
from tools.bench.processes import ROOT, STOP_SECONDS, NotMeasurable, kept_in
from tools.bench.stock import llama

if TYPE_CHECKING:
    from shardload import Generation, Manager
    from tools.bench.figures import Setting

CTX_TOKENS = 2048
BATCH_TOKENS = 512
DECODE_PROMPT_TOKENS = 8


class Side(Protocol):
    """One way to compute; both give seconds."""

    def prefill(self, prompt: Sequence[int]) -> float: ...
    def decode(self, prompt: Sequence[int], tokens: int) -> float: ...


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running

    def prefill_rate(self, seed: int, tokens: int) -> float:
        """Prompt tokens per second."""
        return tokens / self._ask("prefill", seed, tokens)

    def decode_rate(self, seed: int, tokens: int) -> float:
        """Tokens per second after the first."""
        return tokens / self._ask("decode", seed, tokens)

    def _ask(self, work: str, seed: int, tokens: int) -> float:
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        try:
            self._running.stdin.write(json.dumps([work, seed, tokens]) + "\n")
            self._running.stdin.flush()
            return float(json.loads(self._running.stdout.readline()))
        except (OSError, ValueError) as error:
            raise NotMeasurable(f"a worker ended: exit code {self._running.wait(STOP_SECONDS)}") from error


@contextmanager
def worker(side: str, model: Path, setting: Setting) -> Iterator[Worker]:
    """A process with one model, until the block ends."""
    words = [sys.executable, "-m", __spec__.name, side, str(model), "--threads", str(setting.threads)]
    running = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **kept_in(setting.cache)},
    )
    try:
        yield Worker(running)
    finally:
        running.terminate()
        running.communicate()


@contextmanager
def ours(model: Path, threads: int) -> Iterator[Side]:
    """The product as a library."""
    import shardload

    with shardload.Manager([model], ctx=CTX_TOKENS, slots=1, threads=threads) as served:
        (name,) = served.models
        yield Ours(served, name)


class Ours:
    """One model of a manager."""

    def __init__(self, served: Manager, name: str) -> None:
        self._served, self._name = served, name

    def prefill(self, prompt: Sequence[int]) -> float:
        started = time.perf_counter()
        self._generate(prompt, 1)
        return time.perf_counter() - started

    def decode(self, prompt: Sequence[int], tokens: int) -> float:
        started = time.perf_counter()
        finish = self._generate(prompt, tokens + 1).finish
        seconds = time.perf_counter() - started
        assert finish is not None
        return seconds - finish.timings.first_token_seconds

    def _generate(self, prompt: Sequence[int], tokens: int) -> Generation:
        return self._served.generate(
            self._name, list(prompt), max_tokens=tokens, temperature=0, ignore_eos=True
        )


@contextmanager
def stock(model: Path, threads: int, *, repacked: bool) -> Iterator[Side]:
    """llama.cpp by its own interface: nothing of ours but the way around an AMX that traps."""
    with llama(avoid_amx=True) as api:
        settings = api.llama_model_default_params()
        settings.use_extra_bufts = repacked
        weights = api.llama_model_load_from_file(str(model).encode(), settings)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = CTX_TOKENS, BATCH_TOKENS, 1
        params.n_threads = params.n_threads_batch = threads
        context = api.llama_init_from_model(weights, params)
        assert context
        yield Stock(api, context)
        api.llama_free(context)
        api.llama_model_free(weights)


class Stock:
    """One of llama.cpp's contexts."""

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._context = api, context
        self._sampler = api.llama_sampler_init_greedy()

    def prefill(self, prompt: Sequence[int]) -> float:
        self._clear()
        started = time.perf_counter()
        self._step(prompt)
        return time.perf_counter() - started

    def decode(self, prompt: Sequence[int], tokens: int) -> float:
        self._clear()
        token = self._step(prompt)
        started = time.perf_counter()
        for _ in range(tokens):
            token = self._step([token])
        return time.perf_counter() - started

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def _step(self, tokens: Sequence[int]) -> int:
        kept = (self._api.llama_token * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(kept, len(tokens))
        assert self._api.llama_decode(self._context, batch) == 0
        return int(self._api.llama_sampler_sample(self._sampler, self._context, -1))


def main() -> None:
    """Answer each line of standard input with seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "repacked", "mapped"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    if given.side == "ours":
        opened = ours(given.model, given.threads)
    else:
        opened = stock(given.model, given.threads, repacked=given.side == "repacked")
    with opened as side:
        for line in sys.stdin:
            work, seed, tokens = json.loads(line)
            print(_seconds(side, work, seed, tokens), flush=True)


def _seconds(side: Side, work: str, seed: int, tokens: int) -> float:
    if work == "prefill":
        return side.prefill(token_prompt(seed, tokens))
    return side.decode(token_prompt(seed, DECODE_PROMPT_TOKENS), tokens)


if __name__ == "__main__":
    main()
