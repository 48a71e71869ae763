"""What this process has in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil

STATUS_LINE = re.compile(r"^(Vm\w+|Rss\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident bytes of this process by where they come from.

    Anonymous bytes are its own and can only go to swap; file bytes are mapped files and shared memory is
    what several processes may write. File pages that are in memory and not mapped here are not in it.
    """

    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int
    swapped_bytes: int


def parse_status(text: str) -> ProcessMemory:
    """Read Linux's ``/proc/PID/status``."""
    found = {name: int(kibibytes) * 1024 for name, kibibytes in STATUS_LINE.findall(text)}
    resident = found.get("VmRSS", 0)
    return ProcessMemory(
        resident,
        found.get("RssAnon", resident),
        found.get("RssFile", 0),
        found.get("RssShmem", 0),
        found.get("VmSwap", 0),
    )


def portable_process_memory() -> ProcessMemory:
    """The same through psutil: what is unique to the process counts as anonymous, the rest as files."""
    usage = psutil.Process().memory_full_info()
    private = min(usage.rss, usage.uss)
    return ProcessMemory(usage.rss, private, usage.rss - private, 0, getattr(usage, "swap", 0))
