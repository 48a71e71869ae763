"""Memory that others want: noticed before the kernel has to kill somebody for it."""

from __future__ import annotations

import logging
import os
import re
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardload.memory.cgroups import VERSION_2, group_below, limited_groups, parse_membership, parse_mounts

logger = logging.getLogger("shardload.memory")

# What should be left of every limit: enough for a step's buffers and for others to start.
RESERVE_SHARE = 0.05
LARGEST_RESERVE_BYTES = 2**30
# Anybody may have this one: a stall of a twentieth in windows of two seconds.
TRIGGER = b"some 100000 2000000\0"
STALLED_SHARE = 0.05
POLL_SECONDS = 1.0
STALL_LINE = re.compile(r"^(some|full) .*\btotal=(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Headroom:
    """What one limit, the machine's or a group's, leaves to be had, and the pages of files in it."""

    limit_bytes: int
    available_bytes: int
    cache_bytes: int


def shortfall(readings: Iterable[Headroom], *, cached_bytes: int = 0, stalled: bool = False) -> int:
    """Bytes to give back so that every limit keeps its reserve; 0 if there is room.

    Pages of files count as available, which ``cached_bytes`` of them are not for us: they are in use. Where
    somebody had to wait for memory the reserve is twice as large.
    """
    missing = 0
    for reading in readings:
        reserve = min(LARGEST_RESERVE_BYTES, int(reading.limit_bytes * RESERVE_SHARE)) * (2 if stalled else 1)
        used = min(cached_bytes, reading.cache_bytes)
        missing = max(missing, reserve + used - reading.available_bytes)
    return missing


def read_headroom(root: Path = Path("/")) -> list[Headroom]:
    """The machine's memory, and that of the groups with a limit around this process."""
    machine = psutil.virtual_memory()
    cached = int(getattr(machine, "cached", 0))
    found = [Headroom(int(machine.total), int(machine.available), cached)]
    groups = limited_groups(root)
    return found + [Headroom(group.limit_bytes, group.available_bytes, group.cache_bytes) for group in groups]


def parse_stalls(text: str) -> dict[str, int]:
    """Microseconds that ``some`` or ``full`` of all tasks waited for memory, from a pressure file."""
    return {kind: int(total) for kind, total in STALL_LINE.findall(text)}


def pressure_files(root: Path = Path("/")) -> Iterator[Path]:
    """Where the kernel tells of stalls, nearest first: this process's group, then the machine."""
    group = parse_membership(_text(root / "proc/self/cgroup")).get("")
    for mount in parse_mounts(_text(root / "proc/self/mountinfo")):
        if mount.files is VERSION_2 and group is not None:
            yield root / mount.point.lstrip("/") / group_below(mount, group) / "memory.pressure"
    yield root / "proc/pressure/memory"


class Trigger:
    """The kernel's own alarm: a descriptor that becomes ready when tasks wait for memory for too long."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, paths: Iterable[Path]) -> Trigger | None:
        """Set the first alarm that can be had; None where there is none, or not for this user."""
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except (OSError, AttributeError):
                continue
            try:
                os.write(descriptor, TRIGGER)
            except OSError:
                os.close(descriptor)
                continue
            return cls(descriptor, path)
        return None

    def wait(self, seconds: float, stop: int) -> bool:
        """Whether it went off in that time, which ends early when something can be read from ``stop``.

        Raises OSError when there is nothing to wait for any more.
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLPRI)
        poll.register(stop, select.POLLIN)
        events = dict(poll.poll(seconds * 1000)).get(self._descriptor, 0)
        if events & (select.POLLERR | select.POLLNVAL):
            raise OSError(f"{self.path} tells of nothing any more")
        return bool(events & select.POLLPRI)

    def close(self) -> None:
        """Take the alarm away."""
        os.close(self._descriptor)


class PressureWatch:
    """Calls back with the bytes that are missing, on a thread of its own, for as long as some are.

    The kernel's alarm wakes it where there is one, and it looks by itself every second. ``cached_bytes``
    says how much of the machine's page cache is in use by the caller, and is called on that thread too.
    After a call it rests for a second, so that what was freed is seen.
    """

    def __init__(
        self,
        on_pressure: Callable[[int], None],
        *,
        cached_bytes: Callable[[], int] = lambda: 0,
        root: Path = Path("/"),
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Begin to watch the system whose files are below ``root``."""
        self._on_pressure, self._cached_bytes = on_pressure, cached_bytes
        self._root, self._poll_seconds = root, poll_seconds
        self._files = list(pressure_files(root))
        self._trigger = Trigger.open(self._files)
        self._stalls = self._stalled_microseconds()
        self._stopped = threading.Event()
        self._stop, self._stopper = os.pipe()
        self._pipe_lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="shardload-pressure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call back no more; waits for a call that is under way, unless it is the one that closes."""
        self._stopped.set()
        with self._pipe_lock:
            if self._stopper >= 0:
                os.write(self._stopper, b"\0")
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while not self._stopped.is_set():
            stalled = self._wait()
            if not self._stopped.is_set() and self._look(stalled):
                self._stopped.wait(self._poll_seconds)
        if self._trigger is not None:
            self._trigger.close()
        with self._pipe_lock:
            os.close(self._stop)
            os.close(self._stopper)
            self._stop = self._stopper = -1

    def _wait(self) -> bool:
        """Let time pass, and say whether somebody waited for memory in it."""
        if self._trigger is not None:
            try:
                return self._trigger.wait(self._poll_seconds, self._stop)
            except OSError as error:
                logger.info("stalls are looked for every second from now on: %s", error)
                self._trigger.close()
                self._trigger = None
        self._stopped.wait(self._poll_seconds)
        before, self._stalls = self._stalls, self._stalled_microseconds()
        return self._stalls - before > STALLED_SHARE * 1e6 * self._poll_seconds

    def _stalled_microseconds(self) -> int:
        texts = (_text(path) for path in self._files)
        return next((stalls["some"] for text in texts if "some" in (stalls := parse_stalls(text))), 0)

    def _look(self, stalled: bool) -> bool:
        try:
            readings = read_headroom(self._root)
            missing = shortfall(readings, cached_bytes=self._cached_bytes(), stalled=stalled)
            if missing > 0:
                logger.debug("%d bytes of memory are missing%s", missing, ", tasks wait" if stalled else "")
                self._on_pressure(missing)
        except Exception:
            logger.exception("giving memory back under pressure failed")
            return True
        return missing > 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
