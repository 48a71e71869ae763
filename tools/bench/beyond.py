"""The rows about weights that are larger than the memory they may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from shardload.gguf import GGUFFile
from tools.bench.cgroups import limited
from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, Timed, one, prompt
from tools.bench.pages import drop, resident
from tools.bench.processes import PeerSettings, Target, peer_copy, peers, shardload
from tools.bench.store import pack

MIB = 2**20
CTX_TOKENS = 1024
SHARE = 1.3
QUICK_TOKENS, TOKENS = 4, 24
GATHERED = "token_embd.weight"
"""Of which a step reads one row for each token."""


def memory(setting: Setting) -> Iterator[Row]:
    """Bytes read for each token, and tokens per second, with weights 1.3 times the limit."""
    model = setting.models.limited("Q4_K")
    models = {"a": model}
    files = [model, *pack(setting, model)]
    tokens = QUICK_TOKENS if setting.quick else TOKENS
    limit_bytes = int(model.stat().st_size / SHARE)
    stock = PeerSettings("mapped", threads=setting.threads, plain_buffers=True)
    reads: list[float] = []
    bounds: list[float] = []
    drop([*files, peer_copy(model)])
    with (
        limited(limit_bytes) as our_limit,
        limited(limit_bytes) as their_limit,
        shardload(
            models,
            threads=setting.threads,
            slots=1,
            ctx_tokens=CTX_TOKENS,
            cache=setting.cache,
            budget=None if our_limit.folder else str(limit_bytes),
            limit=our_limit,
        ) as ours,
        peers(models, stock, slots=1, ctx_tokens=CTX_TOKENS, limit=their_limit) as theirs,
    ):

        def our_rate(turn: int) -> float:
            before = read_bytes(ours.pid)
            answer = _ask(ours, turn, tokens)
            # The prompt is one step as well, and gives the first token.
            reads.append((read_bytes(ours.pid) - before) / tokens / MIB)
            bounds.append((_step_bytes(model) - resident(files)) / MIB)
            return answer.decode_rate

        first, second = paired(setting.repeats, our_rate, lambda turn: _ask(theirs, turn, tokens).decode_rate)
    held = f"{limit_bytes / MIB:.0f} MiB for each process and its pages. {our_limit.note}".strip()
    yield _reads_row(reads[1:], bounds[1:], held)
    yield Row(
        "the same, tokens per second, against stock llama.cpp mapping under the same limit",
        figure(first, "tok/s", 2),
        figure(second, "tok/s", 2),
        quotients(first, second),
        1.8,
        "higher",
        note=held,
    )


def _reads_row(reads: list[float], bounds: list[float], held: str) -> Row:
    return Row(
        "weights 1.3 times the memory limit, Q4_K: bytes read per token, against what is not resident",
        figure(reads, "MiB", 0),
        figure(bounds, "MiB", 0),
        quotients(reads, bounds),
        1.1,
        "lower",
        note=held,
    )


def read_bytes(pid: int) -> int:
    """What a process has made the disk read."""
    return int(psutil.Process(pid).io_counters().read_bytes)


def _ask(target: Target, seed: int, tokens: int) -> Timed:
    return one(Ask(target.urls["a"], target.names["a"], prompt(seed), tokens))


def _step_bytes(model: Path) -> int:
    """The weights that every step goes through."""
    with GGUFFile(model) as file:
        return sum(tensor.nbytes for tensor in file.tensors.values() if tensor.name != GATHERED)
