"""A limit on the memory of a process and of the pages that it reads, where this system lets us set one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardload.memory.cgroups import VERSION_1, Mount, group_below, parse_membership, parse_mounts

REMOVE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit in bytes, and the group that enforces it: None where no group can be made."""

    limit_bytes: int
    folder: Path | None

    @property
    def note(self) -> str:
        """What the table has to say of it."""
        return "" if self.folder else "no control group can be made here: the budget alone limits"

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs in the group from its first page on."""
        if self.folder is None:
            return list(words)
        entering = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", entering, str(self.folder), *words]


@contextmanager
def limited(limit_bytes: int) -> Iterator[Limit]:
    """A group of our own below the process's, which must be empty of processes again at the end."""
    folder = _make(limit_bytes)
    try:
        yield Limit(limit_bytes, folder)
    finally:
        if folder is not None:
            _remove(folder)


def _make(limit_bytes: int) -> Path | None:
    for parent, mount in _parents():
        folder = parent / f"shardload-bench-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / mount.files.limit).write_text(str(limit_bytes))
            _forbid_swap(folder, mount)
        except OSError:
            folder.rmdir()
            continue
        return folder
    return None


def _forbid_swap(folder: Path, mount: Mount) -> None:
    """What is limited is memory; a group without swap has no file for it."""
    name = "memory.swappiness" if mount.files is VERSION_1 else "memory.swap.max"
    if (folder / name).exists():
        (folder / name).write_text("0")


def _parents() -> Iterator[tuple[Path, Mount]]:
    """Where a group could be made: below this process's own, or for version 2 beside it."""
    groups = parse_membership(Path("/proc/self/cgroup").read_text())
    for mount in parse_mounts(Path("/proc/self/mountinfo").read_text()):
        group = groups.get("memory" if mount.files is VERSION_1 else "")
        if group is None:
            continue
        own = Path(mount.point) / group_below(mount, group)
        if mount.files is VERSION_1:
            yield own, mount
            continue
        # A group of version 2 that has processes cannot give its controllers on.
        for folder in (own, own.parent):
            control = folder / "cgroup.subtree_control"
            if control.exists() and "memory" in control.read_text().split():
                yield folder, mount


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
