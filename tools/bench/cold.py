"""The row about a model of which nothing is in memory: reading it and computing overlap."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.figures import Row, Setting, figure
from tools.bench.load import Ask, one, token_prompt
from tools.bench.pages import bring, direct_seconds, drop
from tools.bench.processes import shardload
from tools.bench.store import pack

CTX_TOKENS = 2048
PROMPT_TOKENS = 256


def first_token(setting: Setting) -> Iterator[Row]:
    """First token of a long prompt with a cold page cache, against the slower of disk and processor.

    The process has served another model before: what it does once is not what is measured. The model is
    opened by the request. It takes the room that other files have just left: what a virtual machine has free
    for a second or two its host takes back, and giving it again page by page as it is touched would double
    the work of the step.
    """
    model = setting.models.plain("Q4_K")
    others = setting.only("b", "c", kind="Q4_K").values()
    models = {"a": model, "tiny": setting.models.tiny()}
    store = pack(setting, model)
    cold: list[float] = []
    warm: list[float] = []
    disk: list[float] = []
    for turn in range(setting.repeats):
        drop([model, *store])
        disk.append(direct_seconds(model))
        with shardload(
            models, threads=setting.threads, slots=1, ctx_tokens=CTX_TOKENS, cache=setting.cache
        ) as target:

            def seconds(name: str, seed: int, tokens: int) -> float:
                asked = token_prompt(seed, tokens)
                return one(Ask(target.urls[name], target.names[name], asked, 2)).first_seconds

            seconds("tiny", turn, 8)
            drop([model, *store])
            bring(others)
            drop(others)
            cold.append(seconds("a", 2 * turn, PROMPT_TOKENS))
            warm.append(seconds("a", 2 * turn + 1, PROMPT_TOKENS))
    bounds = [max(pair) for pair in zip(warm, disk, strict=True)]
    yield Row(
        "cold page cache, its room just in use, prompt of 256 tokens, Q4_K: first token, against the slower "
        "of warm first token and reading the file with direct I/O",
        figure(cold, "s", 2),
        f"{figure(warm, 's warm', 2)}\n{figure(disk, 's read', 2)}",
        tuple(taken / bound for taken, bound in zip(cold, bounds, strict=True)),
        1.3,
        "lower",
    )
