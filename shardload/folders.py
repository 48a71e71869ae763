"""Where this user's programs keep what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Our folder below the user's cache directory; nobody has made it yet, maybe."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A path that is not absolute is to be ignored, says the specification.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "shardload"
