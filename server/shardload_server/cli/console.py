"""What every command prints with: one console for answers, one for what goes wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_COLUMNS = 10_000
"""As wide as no line is: programs that read a table get each of its rows in one line."""


def stdout() -> Console:
    """A console on standard output; nothing in a string is taken for markup unless asked for."""
    from shardload_server.cli.screen import Screen

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return Screen(width=width, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """A console on standard error."""
    from shardload_server.cli.screen import Screen

    return Screen(stderr=True, highlight=False, markup=False, emoji=False)


def complain(message: str) -> None:
    """Print one red line."""
    _tell(message, "red")


def warn(message: str) -> None:
    """Print one yellow line."""
    _tell(message, "yellow")


def _tell(message: str, style: str) -> None:
    out = stderr()
    # People get whole words on each line, programs one line for each message.
    out.print(message, style=style, soft_wrap=not out.is_terminal)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one red line and end the command with ``code``."""
    complain(message)
    raise typer.Exit(code)


def log_to_stderr(level: str = "INFO") -> None:
    """Print shardload's log, one line per event; of llama.cpp's own only what it warns of."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("shardload")
    root.addHandler(handler)
    root.setLevel(level)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).addHandler(handler)


def phrase(error: Exception) -> str | None:
    """The one line that says what went wrong, or None for an error nobody foresaw."""
    from shardload.errors import ShardloadError

    if isinstance(error, ShardloadError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, UnicodeEncodeError):
        return "what is to be sent is not all UTF-8"
    httpx = sys.modules.get("httpx")
    if httpx is not None and isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return str(error) or type(error).__name__
    return None


def table(*columns: str, numbers: tuple[str, ...] = (), narrow: bool = False) -> Table:
    """A plain table; the columns in ``numbers`` are right-aligned, and the others lose no letter.

    A ``narrow`` one has less room between columns.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="bold",
        show_edge=False,
        collapse_padding=narrow,
    )
    for column in columns:
        right = column in numbers
        made.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def count(number: int, noun: str) -> str:
    """A number of things: ``1 model``, ``2 models``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(names: Sequence[str], most: int = 2) -> str:
    """The first of some names, and how many there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def short_bytes(count: int) -> str:
    """A byte count in three digits, for tables that are wide already: ``555 MiB``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    digits = 0 if units[0] == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[0]}"


def percent(share: float) -> str:
    """A share in whole percent; 0 and 100 stand for none and all alone."""
    if 0 < share < 0.01:
        return "<1 %"
    return f"{min(round(100 * share), 99 if share < 1 else 100)} %"


def print_json(value: object) -> None:
    """Print a value as indented JSON, ready for a pipe."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")
