from __future__ import annotations

import psutil
import pytest

from shardload.memory import available_bytes, cgroup_limit_bytes, limits, process_memory
from shardload.memory.cgroups import GroupMemory


def test_available_is_the_tightest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limited_groups", list)
    assert cgroup_limit_bytes() is None
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(
        limits, "limited_groups", lambda: [GroupMemory(9000, 0, 0), GroupMemory(5000, 4000, 1000)]
    )
    assert cgroup_limit_bytes() == 5000
    assert available_bytes() == 2000


def test_this_machine() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    limit = cgroup_limit_bytes()
    assert limit is None or limit > 0
    memory = process_memory()
    assert 0 < memory.anonymous_bytes <= memory.resident_bytes
