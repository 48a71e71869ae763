"""How many bytes all models together may have in memory."""

from __future__ import annotations

from shardload.config import Config
from shardload.memory import available_bytes

DEFAULT_SHARE = 0.8


def budget_bytes(config: Config) -> int:
    """The configured budget, or 80 % of what is available now: to this process, within its control groups."""
    return config.memory.budget or int(available_bytes() * DEFAULT_SHARE)
