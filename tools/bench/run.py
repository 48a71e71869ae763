"""Measure shardload against its peers in one run on this machine, and print one table.

    tools/bench/run [--quick] [--only NAME]... [--list]

Ratios are of pairs measured back to back; figures are medians with [least, most]. Models are made on first
use under bench-models/ (three of 1.1B parameters, 3.5 GB, and copies of two that only the peers read);
every run is kept under bench-results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tools.bench import cost, latency, speed
from tools.bench.figures import Row, Setting
from tools.bench.processes import ROOT, NotMeasurable
from tools.make_model import Size, write_model

ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "single": speed.single_stream,
    "parallel": speed.parallel,
    "two-models": speed.two_models,
    "two-processes": speed.two_processes,
    "switching": latency.switching,
    "opening": latency.opening,
    "header": latency.header,
    "memory": cost.private_memory,
    "python": cost.python_time,
}
TABLE_COLUMNS = 120
QUICK_SIZE = Size(dim=256, layers=2, heads=8, kv_heads=2, ff=512)
TINY_SIZE = Size(dim=64, layers=1, heads=2, kv_heads=1, ff=128)


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
    threads = given.threads or psutil.cpu_count(logical=False) or 1
    setting = prepare(given.quick, threads, given.repeats)
    rows: list[Row] = []
    refused: dict[str, str] = {}
    console = Console(width=max(TABLE_COLUMNS, Console().width))
    for name in given.only or ROWS:
        started = time.monotonic()
        try:
            rows += ROWS[name](setting)
        except NotMeasurable as error:
            refused[name] = str(error)
        console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
    report(console, rows, refused, machine(threads))
    save(rows, refused, machine(threads), quick=given.quick)


def prepare(quick: bool, threads: int, repeats: int | None) -> Setting:
    """Make the models that are not there yet."""
    folder = ROOT / "bench-models"
    folder.mkdir(exist_ok=True)
    kind, size = ("quick", QUICK_SIZE) if quick else ("1b", Size())
    models = {name: folder / f"{kind}-{name}.gguf" for name in "abc"}
    for seed, path in enumerate(models.values(), 1):
        if not path.exists():
            write_model(path, size, seed=seed)
    tiny = folder / "tiny.gguf"
    if not tiny.exists():
        write_model(tiny, TINY_SIZE, kind="F32")
    return Setting(threads, repeats or (1 if quick else 5), 16 if quick else 64, models, tiny)


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
