"""The rows about one model in the packed store: speed of both kinds of steps, opening, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from shardload.gguf import GGUFFile
from tools.bench.bandwidth import read_bytes_per_second
from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, one, prompt
from tools.bench.pages import bring
from tools.bench.processes import PeerSettings, child, peers, shardload
from tools.bench.store import pack
from tools.bench.worker import worker

MIB = 2**20
PROMPT_TOKENS = 256
CTX_TOKENS = 2048
PROCESSES = 3
"""Where in memory a process has its pages moves its speed by some percent, as long as it lives."""


def decode(setting: Setting) -> Iterator[Row]:
    """One stream from the packed store against llama.cpp's own repacked load."""
    for kind in ("Q4_K", "Q4_0"):
        ours, theirs = _decode_rates(setting, kind, "repacked")
        what = f"decode from the packed store, {kind}, against the stock repacked load"
        yield _decode_row(what, ours, theirs, 0.98)


def against_mapped(setting: Setting) -> Iterator[Row]:
    """One stream from the packed store against llama.cpp's own mapping of the file; what memory allows."""
    ours, theirs = _decode_rates(setting, "Q4_K", "mapped")
    weights_bytes = _read_for_a_token(setting.models.plain("Q4_K"))
    passes = read_bytes_per_second(weights_bytes, setting.threads) / weights_bytes
    note = (
        f"memory gives {passes * weights_bytes / 1e9:.0f} GB/s to {setting.threads} threads, {passes:.0f} "
        f"passes over the weights a second: at most {passes / median(theirs):.2f} times stock's speed"
    )
    what = "decode from the packed store, Q4_K, against stock mapped without repacking"
    yield _decode_row(what, ours, theirs, 1.7, note)


def _read_for_a_token(model: Path) -> int:
    """Bytes of the weights that every token needs; of the embeddings it needs one row."""
    with GGUFFile(model) as file:
        return sum(tensor.nbytes for tensor in file.tensors.values() if tensor.name != "token_embd.weight")


def _decode_rates(setting: Setting, kind: str, side: str) -> tuple[list[float], list[float]]:
    """Tokens per second of both in pairs, from several processes of each."""
    model = setting.models.plain(kind)
    pack(setting, model)
    first: list[float] = []
    second: list[float] = []
    for _ in range(PROCESSES):
        with ExitStack() as stack:
            ours = stack.enter_context(worker("ours", model, setting))
            theirs = stack.enter_context(worker(side, model, setting))
            rates = [partial(one.decode_rate, tokens=setting.tokens) for one in (ours, theirs)]
            pairs = paired(setting.repeats, *rates)
        first += pairs[0]
        second += pairs[1]
    return first, second


def _decode_row(what: str, ours: list[float], theirs: list[float], target: float, note: str = "") -> Row:
    shown = figure(ours, "tok/s"), figure(theirs, "tok/s")
    return Row(what, *shown, quotients(ours, theirs), target, "higher", note=note)


def prefill(setting: Setting) -> Iterator[Row]:
    """A prompt of 256 tokens; what can be gained is what llama.cpp itself gains by the file's layout."""
    model = setting.models.plain("Q4_K")
    pack(setting, model)
    mapped: list[float] = []
    with (
        worker("ours", model, setting) as ours,
        worker("repacked", model, setting) as theirs,
        worker("mapped", model, setting) as plain,
    ):

        def repacked_rate(turn: int) -> float:
            mapped.append(plain.prefill_rate(turn, PROMPT_TOKENS))
            return theirs.prefill_rate(turn, PROMPT_TOKENS)

        first, second = paired(
            setting.repeats, lambda turn: ours.prefill_rate(turn, PROMPT_TOKENS), repacked_rate
        )
    gain = median(mapped[1:]) / median(second)
    yield Row(
        "prefill of 256 tokens, Q4_K, against the stock repacked load",
        figure(first, "tok/s"),
        figure(second, "tok/s"),
        quotients(first, second),
        1.4 if gain > 1 else 0.98,
        "higher",
        note=f"stock mapped without repacking: {figure(mapped[1:], 'tok/s')}, {gain:.2f} times the repacked",
    )


def opening(setting: Setting) -> Iterator[Row]:
    """From the wish to a context that computes, pages warm, in fresh processes."""
    model = setting.models.plain("Q4_K")
    bring([model, setting.models.tiny(), *pack(setting, model)])
    first, second = paired(
        setting.repeats,
        lambda _turn: float(child("packed", str(model), cache=setting.cache)["seconds"]),
        lambda _turn: float(child("repacked", str(model), cache=setting.cache)["seconds"]),
    )
    ours_ms = [1000 * value for value in first]
    shown = figure(ours_ms, "ms"), figure([1000 * value for value in second], "ms")
    what = "opening from the packed store with a context, pages warm"
    yield Row(
        f"{what}, how many times faster than the stock repacked load",
        *shown,
        quotients(second, first),
        10.0,
        "higher",
    )
    yield Row(what, *shown, tuple(ours_ms), 100.0, "lower", "ms")


def memory(setting: Setting) -> Iterator[Row]:
    """Memory of the whole process after an answer; pages of files count where nobody else maps them."""
    models = setting.only("a", kind="Q4_K")
    pack(setting, models["a"])
    settings = PeerSettings("defaults", threads=setting.threads)
    first: list[float] = []
    second: list[float] = []
    for turn in range(setting.repeats):
        with shardload(
            models, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS, cache=setting.cache
        ) as ours:
            one(Ask(ours.urls["a"], ours.names["a"], prompt(turn), setting.tokens))
            first.append(proportional_bytes(ours.pid) / MIB)
        with peers(models, settings, slots=1, ctx_tokens=CTX_TOKENS) as theirs:
            one(Ask(theirs.urls["a"], theirs.names["a"], prompt(turn), setting.tokens))
            second.append(proportional_bytes(theirs.pid) / MIB)
    yield Row(
        "memory (PSS) of one Q4_K model after an answer, against an xllamacpp process",
        figure(first, "MiB", 0),
        figure(second, "MiB", 0),
        quotients(first, second),
        0.6,
        "lower",
    )


def proportional_bytes(pid: int) -> int:
    """What a process has in memory, what it shares divided by those who share it."""
    return int(psutil.Process(pid).memory_full_info().pss)
