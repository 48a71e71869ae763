"""The row about fine-tunes: what they leave alone is in memory once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.bench.figures import Row, Setting, figure, quotients
from tools.bench.load import Ask, one, prompt
from tools.bench.pages import drop, resident
from tools.bench.processes import shardload
from tools.bench.store import pack

MIB = 2**20
CTX_TOKENS = 2048
TUNES = 5
CHANGE = 0.2


def page_cache(setting: Setting) -> Iterator[Row]:
    """Pages of model files and of the store, after all five have answered and after one has."""
    tunes = setting.models.tuned("Q4_K", TUNES, change=CHANGE)
    store = pack(setting, *tunes)
    first: list[float] = []
    second: list[float] = []
    for turn in range(setting.repeats):
        second.append(_after_answers(setting, tunes[:1], tunes + store, turn) / MIB)
        first.append(_after_answers(setting, tunes, tunes + store, turn) / MIB)
    yield Row(
        "five fine-tunes that share 80 % of their bytes, Q4_K: page cache after answers of all, against one",
        figure(first, "MiB", 0),
        figure(second, "MiB", 0),
        quotients(first, second),
        1.9,
        "lower",
    )


def _after_answers(setting: Setting, asked: list[Path], files: list[Path], seed: int) -> int:
    drop(files)
    models = {path.stem: path for path in asked}
    with shardload(
        models, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS, cache=setting.cache
    ) as target:
        for name in models:
            one(Ask(target.urls[name], target.names[name], prompt(seed), 4))
        return resident(files)
