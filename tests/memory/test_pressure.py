from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.memory import pressure
from shardload.memory.pressure import (
    Headroom,
    PressureWatch,
    Trigger,
    parse_stalls,
    pressure_files,
    read_headroom,
    shortfall,
)

SECONDS = 30
GIB = 2**30
STALLS = """\
some avg10=0.12 avg60=0.00 avg300=0.00 total={some}
full avg10=0.00 avg60=0.00 avg300=0.00 total=907
"""


def test_room_for_everybody() -> None:
    assert shortfall([]) == 0
    assert shortfall([Headroom(10 * GIB, GIB, 0)]) == 0
    assert shortfall([Headroom(1000 * GIB, 2 * GIB, 0)]) == 0


def test_the_tightest_limit_counts() -> None:
    machine, group = Headroom(100 * GIB, 50 * GIB, GIB), Headroom(2 * GIB, 10**8, 10**8)
    assert shortfall([machine, group]) == 2 * GIB // 20 - 10**8


def test_pages_in_use_are_not_available() -> None:
    reading = Headroom(10 * GIB, 3 * GIB, 3 * GIB)
    assert shortfall([reading], cached_bytes=2 * GIB) == 0
    assert shortfall([reading], cached_bytes=3 * GIB) == GIB // 2
    # They are on another account: of this one's only so many pages can be theirs.
    assert shortfall([Headroom(10 * GIB, 3 * GIB, GIB)], cached_bytes=30 * GIB) == 0


def test_a_stall_asks_for_twice_the_reserve() -> None:
    reading = Headroom(10 * GIB, GIB // 2, 0)
    assert shortfall([reading]) == 0
    assert shortfall([reading], stalled=True) == GIB // 2


sizes = st.integers(0, 2**45)


@given(st.lists(st.builds(Headroom, sizes, sizes, sizes)), sizes, st.booleans())
def test_more_room_is_never_a_larger_shortfall(readings: list[Headroom], cached: int, stalled: bool) -> None:
    missing = shortfall(readings, cached_bytes=cached, stalled=stalled)
    assert missing >= 0
    relieved = [Headroom(one.limit_bytes, one.available_bytes + missing, one.cache_bytes) for one in readings]
    assert shortfall(relieved, cached_bytes=cached, stalled=stalled) == 0
    assert shortfall(readings, cached_bytes=cached) <= missing


def test_stalls_are_read() -> None:
    assert parse_stalls(STALLS.format(some=10977)) == {"some": 10977, "full": 907}
    assert parse_stalls("") == parse_stalls("some avg10=0.00\nnonsense total=5\n") == {}


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert set(parse_stalls(text)) <= {"some", "full"}


def test_the_machine_has_headroom() -> None:
    machine = read_headroom()[0]
    assert 0 < machine.available_bytes <= machine.limit_bytes
    assert machine.cache_bytes >= 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with one group that has a limit, and that tells of stalls."""
    group = tmp_path / "sys/fs/cgroup/service"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/pressure").mkdir()
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/service\n")
    (tmp_path / "proc/self/mountinfo").write_text("29 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text(str(GIB))
    (group / "memory.current").write_text("0")
    (group / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
    (group / "memory.pressure").write_text(STALLS.format(some=0))
    return tmp_path


def use(root: Path, count: int, cache_bytes: int = 0) -> None:
    group = root / "sys/fs/cgroup/service"
    (group / "memory.stat").write_text(f"inactive_file {cache_bytes}\n")
    (group / "memory.current").write_text(str(count))


def test_files_that_tell_of_stalls(root: Path, tmp_path: Path) -> None:
    group, machine = pressure_files(root)
    assert group == tmp_path / "sys/fs/cgroup/service/memory.pressure"
    assert machine == tmp_path / "proc/pressure/memory"
    assert list(pressure_files(root / "nowhere")) == [root / "nowhere/proc/pressure/memory"]


class Calls:
    """What a watch calls back with."""

    def __init__(self) -> None:
        self.missing: list[int] = []
        self.waited = 0
        self.called = threading.Semaphore(0)

    def __call__(self, missing: int) -> None:
        self.missing.append(missing)
        self.called.release()

    def wait(self) -> int:
        """The next one, in order."""
        assert self.called.acquire(timeout=SECONDS)
        self.waited += 1
        return self.missing[self.waited - 1]


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def watch(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PressureWatch]]:
    monkeypatch.setattr(Trigger, "open", lambda paths: None)
    with ExitStack() as stack:

        def start(on_pressure: Callable[[int], None], **settings: Any) -> PressureWatch:
            made = PressureWatch(on_pressure, root=root, poll_seconds=0.001, **settings)
            stack.callback(made.close)
            return made

        yield start


def test_calls_while_bytes_are_missing(root: Path, watch: Callable[..., PressureWatch], calls: Calls) -> None:
    use(root, GIB - GIB // 100)
    watch(calls)
    expected = int(GIB * 0.05) - GIB // 100
    assert calls.wait() == expected
    assert calls.wait() == expected


def test_pages_in_use_count(root: Path, watch: Callable[..., PressureWatch], calls: Calls) -> None:
    use(root, GIB, cache_bytes=GIB // 2)
    watch(calls, cached_bytes=lambda: GIB // 2)
    assert calls.wait() == int(GIB * 0.05)


def test_stalls_are_noticed_without_an_alarm(
    root: Path, watch: Callable[..., PressureWatch], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = iter(range(0, 2**60, 10**6))
    monkeypatch.setattr(pressure, "_text", lambda path: STALLS.format(some=next(total)))
    headroom = [Headroom(GIB, int(GIB * 0.05), 0)]
    monkeypatch.setattr(pressure, "read_headroom", lambda root: headroom)
    watch(calls)
    assert calls.wait() == int(GIB * 0.05)


def test_a_callback_that_fails_is_told_and_called_again(
    root: Path, watch: Callable[..., PressureWatch], calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(missing: int) -> None:
        calls(missing)
        raise RuntimeError("nothing to give")

    use(root, GIB)
    with caplog.at_level(logging.ERROR, "shardload.memory"):
        watch(fail)
        calls.wait()
        calls.wait()
    assert "nothing to give" in caplog.text


def test_closing_from_the_callback(root: Path, watch: Callable[..., PressureWatch], calls: Calls) -> None:
    use(root, GIB)
    made: list[PressureWatch] = []
    ready = threading.Event()

    def close(missing: int) -> None:
        assert ready.wait(SECONDS)
        made[0].close()
        calls(missing)

    made.append(watch(close))
    ready.set()
    calls.wait()
    made[0].close()
    assert len(calls.missing) == 1


def test_the_kernels_alarm_is_set_where_it_can_be() -> None:
    trigger = Trigger.open(pressure_files())
    if trigger is not None:
        stop, stopper = os.pipe()
        os.write(stopper, b"\0")
        assert not trigger.wait(SECONDS, stop)
        trigger.close()
        os.close(stop)
        os.close(stopper)


def test_an_alarm_that_nobody_gives(tmp_path: Path) -> None:
    assert Trigger.open([tmp_path / "missing", tmp_path]) is None
    assert Trigger.open([Path("/dev/full")]) is None


def test_a_watch_with_the_systems_own_alarm(calls: Calls) -> None:
    watch = PressureWatch(calls, poll_seconds=SECONDS)
    watch.close()
    watch.close()


def test_an_alarm_that_goes_off(root: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    use(root, GIB)
    trigger = Trigger(os.open("/dev/null", os.O_RDONLY), Path("alarm"))
    waits: list[float] = []

    def wait(seconds: float, stop: int) -> bool:
        waits.append(seconds)
        if len(waits) > 1:
            raise OSError("gone")
        return True

    monkeypatch.setattr(trigger, "wait", wait)
    monkeypatch.setattr(Trigger, "open", lambda paths: trigger)
    watch = PressureWatch(calls, root=root, poll_seconds=0.001)
    assert calls.wait() == int(GIB * 0.05) * 2
    # It is gone: from now on the watch looks by itself, and nobody waited.
    calls.wait()
    assert calls.wait() == int(GIB * 0.05)
    watch.close()


def test_a_descriptor_that_is_closed_is_no_alarm() -> None:
    stop, stopper = os.pipe()
    descriptor = os.dup(stop)
    os.close(descriptor)
    with pytest.raises(OSError, match="any more"):
        Trigger(descriptor, Path("alarm")).wait(SECONDS, stop)
    os.close(stop)
    os.close(stopper)
