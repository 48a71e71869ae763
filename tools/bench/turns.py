"""The rows about models that take turns: with memory for all, and with memory for one and a half."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tools.bench.cgroups import Limit, limited
from tools.bench.figures import Row, Setting, figure, paired, quotients
from tools.bench.load import Ask, one, prompt
from tools.bench.models import LETTERS
from tools.bench.pages import drop
from tools.bench.processes import PeerSettings, Target, peer_copy, peers, shardload
from tools.bench.store import pack

MIB = 2**20
CTX_TOKENS = 2048
ASKS_PER_TURN = 6
SHARE = 1.5
ALLOWANCE_BYTES = 256 * MIB
"""What a process needs beside weights: its programs, vocabularies, KV caches and compute buffers."""


def switching(setting: Setting) -> Iterator[Row]:
    """Seconds to the first token when every request goes to another open model, against always the same."""
    yield _in_turn(
        setting,
        setting.only(*LETTERS),
        "first token after switching to another open model, against staying",
    )


def with_room(setting: Setting) -> Iterator[Row]:
    """The same with packed models."""
    models = setting.only(*LETTERS, kind="Q4_K")
    pack(setting, *models.values())
    yield _in_turn(
        setting,
        models,
        "three packed models in turn with memory for all: first token, against staying on one",
    )


def _in_turn(setting: Setting, models: dict[str, Path], what: str) -> Row:
    with shardload(
        models, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS, cache=setting.cache
    ) as target:
        for name in models:
            _first_seconds(target, name, 0)

        def seconds(names: list[str], turn: int) -> float:
            seeds = range(turn * ASKS_PER_TURN, (turn + 1) * ASKS_PER_TURN)
            return median(
                _first_seconds(target, names[seed % len(names)], seed * 4 + len(names)) for seed in seeds
            )

        first, second = paired(
            setting.repeats, lambda turn: seconds(list(models), turn), lambda turn: seconds(["a"], turn)
        )
    return Row(
        what,
        figure([1000 * value for value in first], "ms"),
        figure([1000 * value for value in second], "ms staying"),
        quotients(first, second),
        1.2,
        "lower",
    )


def with_little_room(setting: Setting) -> Iterator[Row]:
    """Packed models where one and a half fit, against processes that are stopped and started."""
    models = {letter: setting.models.limited("Q4_K", letter) for letter in LETTERS}
    store = pack(setting, *models.values())
    one_bytes = max(path.stat().st_size for path in models.values())
    limit_bytes = int(SHARE * one_bytes) + ALLOWANCE_BYTES
    drop([*models.values(), *store, *map(peer_copy, models.values())])
    with ExitStack() as stack:
        limit = stack.enter_context(limited(limit_bytes))
        target = stack.enter_context(
            shardload(
                models,
                threads=setting.threads,
                slots=1,
                ctx_tokens=CTX_TOKENS,
                cache=setting.cache,
                budget=str(limit_bytes),
                limit=limit,
            )
        )
        replaced = Replaced(models, setting.threads, stack.enter_context(limited(limit_bytes)))
        stack.callback(replaced.stop)
        first, second = paired(
            max(len(models), setting.repeats),
            lambda turn: _first_seconds(target, LETTERS[turn % len(models)], turn),
            lambda turn: replaced.first_seconds(LETTERS[turn % len(models)], turn),
        )
    yield Row(
        "three models in turn with memory for one and a half: first token, how many times sooner than "
        "llama.cpp stopping one and starting the next",
        figure([1000 * value for value in first], "ms"),
        figure([1000 * value for value in second], "ms"),
        quotients(second, first),
        3.0,
        "higher",
        note=f"{limit_bytes / MIB:.0f} MiB for each side, xllamacpp as a fresh process. {limit.note}".strip(),
    )


class Replaced:
    """One process at a time: the next model's starts when the last one's has ended."""

    def __init__(self, models: dict[str, Path], threads: int, limit: Limit) -> None:
        self._models, self._limit = models, limit
        self._settings = PeerSettings("defaults", threads=threads)
        self._running = ExitStack()

    def first_seconds(self, name: str, seed: int) -> float:
        """From the wish for a model that is not running to its first token."""
        started = time.monotonic()
        self.stop()
        target = self._running.enter_context(
            peers(
                {name: self._models[name]}, self._settings, slots=1, ctx_tokens=CTX_TOKENS, limit=self._limit
            )
        )
        return one(Ask(target.urls[name], target.names[name], prompt(seed), 2)).first - started

    def stop(self) -> None:
        """End what is running."""
        self._running.close()


def _first_seconds(target: Target, name: str, seed: int) -> float:
    return one(Ask(target.urls[name], target.names[name], prompt(seed), 2)).first_seconds
