"""The row about many models that are open and have nothing to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from tools.bench.cost import private_bytes
from tools.bench.figures import Row, Setting
from tools.bench.load import Ask, one, prompt
from tools.bench.processes import Target, models_of, shardload

GIB = 2**30
CTX_TOKENS = 2048
MODELS, QUICK_MODELS = 100, 10
TARGET_GIB = 1.6
IDLE_SECONDS = 1
SETTLE_SECONDS = 60.0
SETTINGS = f"""
[parking]
idle = "{IDLE_SECONDS}s"
[store]
enabled = false
[engine]
keep_alive = -1
"""


def private_memory(setting: Setting) -> Iterator[Row]:
    """Private memory of the whole process when all have answered once and are idle.

    Their weights are holes in files, so that a hundred have room on a disk: nothing private depends on what
    weights say. All else is of full size.
    """
    count = QUICK_MODELS if setting.quick else MODELS
    models = {path.stem: path for path in setting.models.hollow(count)}
    with shardload(
        models,
        threads=setting.threads,
        slots=1,
        ctx_tokens=CTX_TOKENS,
        cache=setting.cache,
        budget="1TiB",
        settings=SETTINGS,
    ) as target:
        for seed, name in enumerate(models):
            one(Ask(target.urls[name], target.names[name], prompt(seed), 2))
        private = settled_bytes(target) / GIB
        counts = Counter(model["state"] for model in models_of(target).values())
    closed = len(models) - sum(counts[name] for name in ("open", "parked", "streaming"))
    yield Row(
        f"{count} open idle models that have answered: private memory of the process",
        f"{private:.2f} GiB",
        ", ".join(f"{number} {name}" for name, number in sorted(counts.items())),
        (private,),
        TARGET_GIB * count / MODELS,
        "lower",
        "GiB",
        note=f"{closed} of them closed themselves" if closed else "",
    )


def settled_bytes(target: Target) -> int:
    """Private memory when it has not fallen for a while; what is idle gives its memory back by and by."""
    deadline = time.monotonic() + SETTLE_SECONDS
    before = private_bytes(target.pid)
    while time.monotonic() < deadline:
        time.sleep(3 * IDLE_SECONDS)
        now = private_bytes(target.pid)
        if now >= before:
            return now
        before = now
    return before
