"""What ``shardload doctor`` says of one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from shardload_server.cli.orders import TypeOrder

Verdict = Literal["ok", "note", "bad"]


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at; ``bad`` is what keeps shardload from working as it should."""

    name: str
    verdict: Verdict
    detail: str
    orders: tuple[TypeOrder, ...] = ()
    """Of the two orders of weights alone."""
