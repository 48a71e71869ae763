"""What ``shardload doctor`` says of the two orders of weights: which one is faster for which step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from shardload.config import EngineConfig
from shardload.errors import NativeError
from shardload.shards.layouts import LEAST_TOKENS, LayoutTable
from shardload_server.cli import console
from shardload_server.cli.checks import Check

if TYPE_CHECKING:
    from rich.table import Table

FEW_TOKENS, MANY_TOKENS = 1, 256
"""Steps whose speeds are told: an answer's, and a prompt's."""
NOTE = (
    "The numbers say how many times as fast packed weights are as those in the order of the file. "
    f"Steps of fewer than {LEAST_TOKENS} tokens always read packed ones: both orders take twice the room."
)


class Turn(msgspec.Struct, frozen=True):
    """Steps of so many tokens and more read this order."""

    tokens: int
    layout: str


class TypeOrder(msgspec.Struct, frozen=True):
    """What was measured for one type; gains say how many times as fast the packed order is."""

    type: str
    turns: tuple[Turn, ...]
    decode_gain: float
    prompt_gain: float


def orders_check(settings: EngineConfig, *, measure: bool = False) -> Check:
    """What is remembered of this machine; with ``measure`` everything is measured anew, for seconds."""
    from shardload.assembly import layout_choice

    try:
        choice = layout_choice(settings)
    except (NativeError, OSError) as error:
        return Check("layouts", "note", f"not known: {error}")
    if measure:
        from shardload.llama.calibrate import TYPE_NUMBERS

        for name in TYPE_NUMBERS:
            console.stderr().print(f"measuring {name.upper()} ...", style="bright_black")
            choice.measure_now([name])
    orders = type_orders(choice.table)
    if not orders:
        return Check(
            "layouts", "ok", "packed for every step; measured after a first answer, or with --measure"
        )
    names = ", ".join(order.type for order in orders)
    return Check("layouts", "ok", f"measured for {names}; packed for others ({choice.path})", orders)


def type_orders(table: LayoutTable) -> tuple[TypeOrder, ...]:
    """The measured types in the order of the alphabet."""
    return tuple(_type_order(table, name) for name in sorted(table.speeds))


def _type_order(table: LayoutTable, name: str) -> TypeOrder:
    speeds = table.speeds[name]

    def gain(tokens: int) -> float:
        seconds = {order: speeds.seconds_per_token(order, tokens) for order in ("file", "packed")}
        return round(seconds["file"] / seconds["packed"], 2)

    turns = tuple(Turn(tokens, layout) for tokens, layout in table.thresholds({name: 1}))
    return TypeOrder(name, turns, gain(FEW_TOKENS), gain(MANY_TOKENS))


def order_table(orders: Iterable[TypeOrder]) -> Table:
    """One line per type."""
    gains = (f"at {FEW_TOKENS} token", f"at {MANY_TOKENS} tokens")
    made = console.table("type", "read, by tokens of a step", *gains, numbers=gains)
    for order in orders:
        made.add_row(
            order.type, turn_line(order.turns), f"{order.decode_gain:.2f}", f"{order.prompt_gain:.2f}"
        )
    return made


def turn_line(turns: Iterable[Turn]) -> str:
    """Which order is read from how many tokens on: ``packed, 16+ file``."""
    first, *later = turns
    return ", ".join([first.layout, *(f"{turn.tokens}+ {turn.layout}" for turn in later)])
