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
from typing import TYPE_CHECKING, Protocol

from tools.bench.load import token_prompt
from tools.bench.processes import ROOT, STOP_SECONDS, NotMeasurable, kept_in

if TYPE_CHECKING:
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

    class Ours:
        def prefill(self, prompt: Sequence[int]) -> float:
            started = time.perf_counter()
            served.generate(name, list(prompt), max_tokens=1, temperature=0, ignore_eos=True)
            return time.perf_counter() - started

        def decode(self, prompt: Sequence[int], tokens: int) -> float:
            started = time.perf_counter()
            generation = served.generate(
                name, list(prompt), max_tokens=tokens + 1, temperature=0, ignore_eos=True
            )
            finish = generation.finish
            seconds = time.perf_counter() - started
            assert finish is not None
            return seconds - finish.timings.first_token_seconds

    with shardload.Manager([model], ctx=CTX_TOKENS, slots=1, threads=threads) as served:
        (name,) = served.models
        yield Ours()


@contextmanager
def stock(model: Path, threads: int, *, repacked: bool) -> Iterator[Side]:
    """llama.cpp by its own interface: nothing of ours but the way around an AMX that traps."""
    import llama_cpp

    from shardload_native.amx import avoid_traps
    from shardload_native.library import load

    avoid_traps(load())
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    settings = llama_cpp.llama_model_default_params()
    settings.use_extra_bufts = repacked
    weights = llama_cpp.llama_model_load_from_file(str(model).encode(), settings)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_seq_max = CTX_TOKENS, BATCH_TOKENS, 1
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(weights, params)
    assert context
    sampler = llama_cpp.llama_sampler_init_greedy()
    token_array = llama_cpp.llama_token * BATCH_TOKENS

    def step(tokens: Sequence[int]) -> int:
        kept = token_array(*tokens)
        batch = llama_cpp.llama_batch_get_one(kept, len(tokens))
        assert llama_cpp.llama_decode(context, batch) == 0
        return int(llama_cpp.llama_sampler_sample(sampler, context, -1))

    class Stock:
        def prefill(self, prompt: Sequence[int]) -> float:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
            started = time.perf_counter()
            step(prompt)
            return time.perf_counter() - started

        def decode(self, prompt: Sequence[int], tokens: int) -> float:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
            token = step(prompt)
            started = time.perf_counter()
            for _ in range(tokens):
                token = step([token])
            return time.perf_counter() - started

    yield Stock()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(weights)


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
