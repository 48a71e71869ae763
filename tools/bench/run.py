"""Measure shardload against its peers in one run on this machine, and print one table.

    tools/bench/run [--quick] [--only NAME]... [--list]

Ratios are of pairs measured back to back; figures are medians with [least, most]. Models are made on first
use under bench-models/ (1.1B parameters, of three types, with fine-tunes, and copies of some that only the
peers read: 17 GB with the store); every run is kept under bench-results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tools.bench import beyond, cold, cost, idle, latency, packed, parking, sharing, speed, turns
from tools.bench.figures import Row, Setting
from tools.bench.models import Models
from tools.bench.processes import ROOT, NotMeasurable
from tools.make_model import Size

ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "single": speed.single_stream,
    "parallel": speed.parallel,
    "two-models": speed.two_models,
    "two-processes": speed.two_processes,
    "switching": turns.switching,
    "opening": latency.opening,
    "header": latency.header,
    "memory": cost.private_memory,
    "python": cost.python_time,
    "packed-decode": packed.decode,
    "packed-prefill": packed.prefill,
    "packed-against-mapped": packed.against_mapped,
    "packed-opening": packed.opening,
    "packed-memory": packed.memory,
    "turns": turns.with_room,
    "turns-in-little-room": turns.with_little_room,
    "cold": cold.first_token,
    "beyond-memory": beyond.memory,
    "sharing": sharing.page_cache,
    "idle": idle.private_memory,
    "returning": parking.returning,
}
TABLE_COLUMNS = 120
QUICK_SIZE = Size(dim=256, layers=2, heads=8, kv_heads=2, ff=512)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measure shardload against its peers.")
    parser.add_argument("--quick", action="store_true", help="small models, to see that all of it works")
    parser.add_argument("--only", action="append", choices=tuple(ROWS), metavar="NAME", help="repeatable")
    parser.add_argument("--threads", type=int, help="compute threads of both sides; all physical cores")
    parser.add_argument("--repeats", type=int, help="pairs per row")
    parser.add_argument("--list", action="store_true", help="name the rows")
    given = parser.parse_args()
    if given.list:
        print("\n".join(ROWS))
        return
    # Being ended ends the servers as well, and removes what they kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threads = given.threads or psutil.cpu_count(logical=False) or 1
    folder = ROOT / "bench-models"
    folder.mkdir(exist_ok=True)
    # Beside the models: what is packed belongs on the same disk.
    with tempfile.TemporaryDirectory(prefix="cache-", dir=folder) as cache:
        setting = Setting(
            threads,
            given.repeats or (1 if given.quick else 5),
            16 if given.quick else 64,
            Models(folder, "quick", QUICK_SIZE, Size())
            if given.quick
            else Models(folder, "1b", Size(), Size()),
            Path(cache),
            given.quick,
        )
        measure(setting, given.only or list(ROWS))


def measure(setting: Setting, names: list[str]) -> None:
    """Measure these rows, print them and keep them."""
    rows: list[Row] = []
    refused: dict[str, str] = {}
    console = Console(width=max(TABLE_COLUMNS, Console().width))
    for name in names:
        started = time.monotonic()
        try:
            rows += ROWS[name](setting)
        except (NotMeasurable, RuntimeError, OSError) as error:
            # A server that fails must not take the other rows with it.
            refused[name] = str(error)
        console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
    where = machine(setting.threads)
    report(console, rows, refused, where)
    save(rows, refused, where, quick=setting.quick)


def machine(threads: int) -> str:
    """What the figures are from, in one line."""
    cores = psutil.cpu_count(logical=False)
    return (
        f"{platform.processor() or platform.machine()}, {cores} cores, {threads} threads; "
        f"llama-cpp-python {version('llama-cpp-python')}, Python {platform.python_version()}"
    )


def report(console: Console, rows: list[Row], refused: dict[str, str], where: str) -> None:
    """Print the table."""
    table = Table(title=where, title_style="dim")
    for column in ("what", "shardload", "against", "ratio", "target", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        low, high = min(row.values), max(row.values)
        spread = f"{row.value:.2f} [{low:.2f}, {high:.2f}]" if not row.unit else f"{row.value:.1f} {row.unit}"
        bound = f"{'≥' if row.better == 'higher' else '≤'} {row.target:g} {row.unit}".strip()
        what = row.what + (f"\n({row.note})" if row.note else "")
        table.add_row(what, row.ours, row.theirs, spread, bound, "met" if row.met else "MISSED")
    for name, reason in refused.items():
        table.add_row(name, "", "", "not measured", "", reason)
    console.print(table)


def save(rows: list[Row], refused: dict[str, str], where: str, *, quick: bool) -> Path:
    """Keep the figures of this run."""
    folder = ROOT / "bench-results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if quick else ''}.json"
    content = {"machine": where, "rows": [asdict(row) for row in rows], "not_measured": refused}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


if __name__ == "__main__":
    main()
