from __future__ import annotations

import math

import anyio
import anyio.lowlevel
import pytest
from fake_opener import FakeClock

from shardload.library.alarm import Alarm

pytestmark = pytest.mark.anyio


async def test_past_times_ring_at_once() -> None:
    alarm = Alarm(FakeClock())
    alarm.set(0.0)
    with anyio.fail_after(30):
        await alarm.wait()
    assert alarm.at == 0.0


async def test_moved_nearer_while_somebody_waits() -> None:
    alarm, rung = Alarm(FakeClock()), anyio.Event()

    async def wait() -> None:
        await alarm.wait()
        rung.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        alarm.set(math.inf)
        await anyio.lowlevel.checkpoint()
        assert not rung.is_set()
        alarm.set(5000.0)
        await rung.wait()
        assert alarm.at == 5000.0
