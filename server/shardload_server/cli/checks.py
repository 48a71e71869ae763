"""What ``shardload doctor`` says of one thing."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["ok", "note", "bad"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at; ``bad`` is what keeps shardload from working as it should."""

    name: str
    verdict: Verdict
    detail: str
