"""How much memory there is for us."""

from __future__ import annotations

import psutil

from shardload.memory.cgroups import limited_groups
from shardload.memory.platform import current
from shardload.memory.process import ProcessMemory


def cgroup_limit_bytes() -> int | None:
    """The tightest limit of the control groups around this process; None without one."""
    return min((group.limit_bytes for group in limited_groups()), default=None)


def available_bytes() -> int:
    """What this process can still take before something swaps or is killed.

    Pages of files count as available, for the machine and for a control group alike: they are given back
    first.
    """
    machine = int(psutil.virtual_memory().available)
    return min([machine, *(group.available_bytes for group in limited_groups())])


def process_memory() -> ProcessMemory:
    """What this process has in memory."""
    return current().process_memory()
