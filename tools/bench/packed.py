"""The rows about one model in the packed store: speed of both kinds of steps, opening, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from tools.bench.figures import Row, Setting, figure, in_turns, paired, quotients
from tools.bench.load import Ask, one, prompt
from tools.bench.pages import bring
from tools.bench.processes import PeerSettings, child, peer_copy, peers, shardload
from tools.bench.store import pack
from tools.bench.worker import Worker, worker

MIB = 2**20
PROMPT_TOKENS = 256
CTX_TOKENS = 2048
SIDES = ("ours", "mapped", "repacked")
PROCESSES = 3
"""Where in memory a process has its pages moves its speed by some percent, as long as it lives."""


def decode(setting: Setting) -> Iterator[Row]:
    """One stream from the packed store against llama.cpp's own repacked load."""
    for kind in ("Q4_K", "Q4_0"):
        ours, theirs = _decode_rates(setting, kind, "ours", "repacked")
        what = f"decode from the packed store, {kind}, against the stock repacked load"
        yield _decode_row(what, ours, theirs, 0.98)


def against_mapped(setting: Setting) -> Iterator[Row]:
    """One stream from the packed store against llama.cpp's own mapping of the file.

    What can be gained is what llama.cpp itself gains by repacking, since its kernels compute either way.
    """
    ours, theirs, repacked = _decode_rates(setting, "Q4_K", *SIDES)
    gain = median(quotients(repacked, theirs))
    note = f"the stock repacked load: {figure(repacked, 'tok/s')}, {gain:.2f} times the mapped"
    what = "decode from the packed store, Q4_K, against stock mapped without repacking"
    yield _decode_row(what, ours, theirs, 1.7, note)


def _decode_rates(setting: Setting, kind: str, *sides: str) -> list[list[float]]:
    """Tokens per second of each side, in turns, from several processes of each."""
    model = setting.models.plain(kind)
    pack(setting, model)
    rates: list[list[float]] = [[] for _ in sides]
    for _ in range(PROCESSES):
        with ExitStack() as stack:
            workers = [stack.enter_context(_worker(side, model, setting)) for side in sides]
            works = [partial(side.decode_rate, tokens=setting.tokens) for side in workers]
            for found, more in zip(rates, in_turns(setting.repeats, *works), strict=True):
                found += more
    return rates


def _worker(side: str, model: Path, setting: Setting) -> AbstractContextManager[Worker]:
    """A side's process; stock has a copy of the file, so that it does not get our large pages of it."""
    return worker(side, model if side == "ours" else peer_copy(model), setting)


def _decode_row(what: str, ours: list[float], theirs: list[float], target: float, note: str = "") -> Row:
    shown = figure(ours, "tok/s"), figure(theirs, "tok/s")
    return Row(what, *shown, quotients(ours, theirs), target, "higher", note=note)


def prefill(setting: Setting) -> Iterator[Row]:
    """A prompt of 256 tokens; what can be gained is what llama.cpp itself gains by the file's layout."""
    model = setting.models.plain("Q4_K")
    pack(setting, model)
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(side, model, setting)) for side in SIDES]
        works = [partial(side.prefill_rate, tokens=PROMPT_TOKENS) for side in workers]
        ours, mapped, repacked = in_turns(setting.repeats, *works)
    gain = median(mapped) / median(repacked)
    yield Row(
        "prefill of 256 tokens, Q4_K, against the stock repacked load",
        figure(ours, "tok/s"),
        figure(repacked, "tok/s"),
        quotients(ours, repacked),
        1.4 if gain > 1 else 0.98,
        "higher",
        note=f"stock mapped without repacking: {figure(mapped, 'tok/s')}, {gain:.2f} times the repacked",
    )


def opening(setting: Setting) -> Iterator[Row]:
    """From the wish to a context that computes, pages warm, in fresh processes."""
    model = setting.models.plain("Q4_K")
    copy = peer_copy(model)
    bring([model, copy, setting.models.tiny(), *pack(setting, model)])
    first, second = paired(
        setting.repeats,
        lambda _turn: float(child("packed", str(model), cache=setting.cache)["seconds"]),
        lambda _turn: float(child("repacked", str(copy), cache=setting.cache)["seconds"]),
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
