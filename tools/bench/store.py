"""The packed store of a run, and what belongs to it: which order of bytes which steps read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.bench.figures import Setting
from tools.bench.latency import child
from tools.bench.processes import COMMAND, ROOT, NotMeasurable, kept_in, stored


def pack(setting: Setting, *models: Path) -> list[Path]:
    """Fill the packed store with models; gives the files that the store has now.

    The orders of bytes are measured as well: a server would do both behind its first answers, and what it
    does once is not what is measured.
    """
    words = [sys.executable, *COMMAND, "pack", *map(str, models)]
    environment = {**os.environ, **kept_in(setting.cache)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        reason = ((done.stderr or done.stdout).strip().splitlines() or ["died"])[-1]
        raise NotMeasurable(f"nothing can be packed: {reason}")
    for model in models:
        child("layouts", str(model), str(setting.threads), cache=setting.cache)
    return stored(setting.cache)
