"""The packed store of a run, and what belongs to it: which order of bytes which steps read."""

from __future__ import annotations

from pathlib import Path

from tools.bench.figures import Setting
from tools.bench.processes import COMMAND, child, finished, stored


def pack(setting: Setting, *models: Path) -> list[Path]:
    """Fill the packed store with models; gives the files that the store has now.

    The orders of bytes are measured as well: a server would do both behind its first answers, and what it
    does once is not what is measured.
    """
    finished(*COMMAND, "pack", *map(str, models), cache=setting.cache)
    for model in models:
        child("layouts", str(model), str(setting.threads), cache=setting.cache)
    return stored(setting.cache)
