"""A bar on a terminal for what takes a while; programs that read our output see none of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from shardload_server.cli import console


class Report(Protocol):
    """Told how many bytes of how many are done, and of what if it is not the first thing; any thread."""

    def __call__(self, done: int, total: int, stage: str | None = None) -> None: ...


@contextmanager
def byte_bar(title: str) -> Iterator[Report]:
    """Show bytes, speed and time left on standard error while the block runs; the bar leaves with it."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    out = console.stderr()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal, expand=True) as shown:
        task = shown.add_task(title, total=None)
        shown_stage = title

        def report(done: int, total: int, stage: str | None = None) -> None:
            nonlocal shown_stage, task
            if stage is not None and stage != shown_stage:
                # Speed and time left begin anew.
                shown.remove_task(task)
                task, shown_stage = shown.add_task(stage, total=total), stage
            shown.update(task, completed=done, total=total)

        yield report
