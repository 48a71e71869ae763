from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from shardload.errors import HandleClosed
from shardload.memory import Range, prefetch, resident_bytes
from shardload.memory.eviction import evict
from shardload.memory.prefetch import CHUNK_BYTES, Prefetcher

SECONDS = 30


@pytest.fixture
def prefetcher() -> Iterator[Prefetcher]:
    made = Prefetcher(threads=2)
    yield made
    made.close()


class Disk:
    """Records what is brought in, and holds each chunk up until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, held_up: bool = True) -> None:
        self.chunks: list[int] = []
        self.begun = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._held_up = held_up
        monkeypatch.setattr(prefetch, "bring_in", self.bring_in)
        monkeypatch.setattr(prefetch, "missing_bytes", lambda place: place.length)

    def bring_in(self, place: Range) -> None:
        self.chunks.append(place.address // CHUNK_BYTES)
        self.begun.release()
        if self._held_up:
            assert self._gate.acquire(timeout=SECONDS)

    def let_go(self, chunks: int = 1000) -> None:
        self._gate.release(chunks)

    def wait_for(self, chunks: int) -> None:
        for _ in range(chunks):
            assert self.begun.acquire(timeout=SECONDS)


def chunks(first: int, count: int) -> list[Range]:
    return [Range(first * CHUNK_BYTES, count * CHUNK_BYTES)]


def test_brings_a_file_in(prefetcher: Prefetcher, mapped_file: Any) -> None:
    whole = Range(mapped_file.address, mapped_file.length)
    known = evict(whole) == 0
    job = prefetcher.bring([whole], name="file")
    assert job.done.wait(SECONDS)
    assert resident_bytes(whole.address, whole.length) in (whole.length, None)
    assert not known or job.read_bytes == whole.length
    again = prefetcher.bring([Range(whole.address + 3, 5)], name="file")
    assert again.done.wait(SECONDS)
    assert again.read_bytes == 0


def test_ranges_are_read_in_order_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, held_up=False)
    prefetcher = Prefetcher(threads=1)
    job = prefetcher.bring([*chunks(5, 2), Range(CHUNK_BYTES + 7, CHUNK_BYTES), *chunks(0, 1)], name="model")
    assert job.done.wait(SECONDS)
    assert disk.chunks == [5, 6, 1, 2, 0]
    assert job.read_bytes == 4 * CHUNK_BYTES
    prefetcher.close()


def test_two_threads_at_most(monkeypatch: pytest.MonkeyPatch, prefetcher: Prefetcher) -> None:
    disk = Disk(monkeypatch)
    jobs = [prefetcher.bring(chunks(10 * number, 5), name="model") for number in range(4)]
    disk.wait_for(2)
    assert not disk.begun.acquire(blocking=False)
    assert sum(thread.name == "shardload-prefetch" for thread in threading.enumerate()) == 2
    disk.let_go()
    for job in jobs:
        assert job.done.wait(SECONDS)
    assert len(disk.chunks) == 20


def test_the_job_with_the_least_left_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    prefetcher = Prefetcher(threads=1)
    large = prefetcher.bring(chunks(0, 3), name="large")
    disk.wait_for(1)
    small = prefetcher.bring(chunks(50, 1), name="small")
    disk.let_go()
    assert small.done.wait(SECONDS)
    assert large.done.wait(SECONDS)
    assert disk.chunks == [0, 50, 1, 2]
    prefetcher.close()


def test_cancelling_ends_with_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch, prefetcher: Prefetcher
) -> None:
    disk = Disk(monkeypatch)
    job = prefetcher.bring(chunks(0, 100), name="model")
    disk.wait_for(2)
    job.cancel()
    assert not job.done.is_set()
    disk.let_go()
    assert job.done.wait(SECONDS)
    assert len(disk.chunks) == 2


def test_a_cancelled_job_waits_for_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    prefetcher = Prefetcher(threads=1)
    first = prefetcher.bring(chunks(0, 5), name="first")
    disk.wait_for(1)
    behind = prefetcher.bring(chunks(50, 100), name="behind")
    behind.cancel()
    assert behind.done.is_set()
    assert not first.done.is_set()
    disk.let_go()
    assert first.done.wait(SECONDS)
    assert disk.chunks == [0, 1, 2, 3, 4]
    prefetcher.close()


def test_a_job_without_bytes_is_done(prefetcher: Prefetcher) -> None:
    assert prefetcher.bring([], name="nothing").done.wait(SECONDS)


def test_closing_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    prefetcher = Prefetcher(threads=2)
    job = prefetcher.bring(chunks(0, 100), name="model")
    disk.wait_for(2)
    cancel, cancelled = job.cancel, threading.Event()
    monkeypatch.setattr(job, "cancel", lambda: (cancel(), cancelled.set()))
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    assert cancelled.wait(SECONDS)
    disk.let_go()
    closing.join(SECONDS)
    prefetcher.close()
    assert job.done.is_set()
    assert len(disk.chunks) == 2
    with pytest.raises(HandleClosed):
        prefetcher.bring([], name="late")


def test_failures_are_told_and_end_the_job(
    monkeypatch: pytest.MonkeyPatch, prefetcher: Prefetcher, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(place: Range) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(prefetch, "bring_in", fail)
    monkeypatch.setattr(prefetch, "missing_bytes", lambda place: 0)
    with caplog.at_level(logging.WARNING, "shardload.memory"):
        job = prefetcher.bring(chunks(0, 100), name="model.gguf")
        assert job.done.wait(SECONDS)
    assert "model.gguf" in caplog.text
    assert "the disk is gone" in caplog.text


@pytest.mark.parametrize("where", ["bring_in", "missing_bytes"])
def test_whatever_fails_strands_no_job(
    monkeypatch: pytest.MonkeyPatch,
    prefetcher: Prefetcher,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    def fail(place: Range) -> int:
        raise MemoryError("no room for a list")

    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "missing_bytes", lambda place: 0)
        patch.setattr(prefetch, where, fail)
        with caplog.at_level(logging.WARNING, "shardload.memory"):
            assert prefetcher.bring(chunks(0, 3), name="model.gguf").done.wait(SECONDS)
    assert "no room for a list" in caplog.text
    Disk(monkeypatch, held_up=False)
    assert prefetcher.bring(chunks(0, 3), name="the next").done.wait(SECONDS)


class Threads:
    """Lets so many threads of the prefetcher begin, and refuses more as a limit of the system does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.left = most
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self.start(thread))

    def start(self, thread: threading.Thread) -> None:
        if thread.name == "shardload-prefetch":
            if not self.left:
                raise RuntimeError("can't start new thread")
            self.left -= 1
        self._start(thread)


def test_one_thread_does_what_others_cannot_be_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _ = Disk(monkeypatch, held_up=False), Threads(monkeypatch, 1)
    with closing(Prefetcher()) as prefetcher:
        assert prefetcher.bring(chunks(0, 3), name="model").done.wait(SECONDS)
    assert disk.chunks == [0, 1, 2]


def test_without_any_thread_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, threads = Disk(monkeypatch, held_up=False), Threads(monkeypatch, 0)
    with closing(Prefetcher()) as prefetcher:
        with caplog.at_level(logging.WARNING, "shardload.memory"):
            assert prefetcher.bring(chunks(0, 3), name="model.gguf").done.is_set()
        assert "model.gguf" in caplog.text
        assert disk.chunks == []
        threads.left = 1
        assert prefetcher.bring(chunks(7, 1), name="the next").done.wait(SECONDS)
        assert disk.chunks == [7]


def test_computing_comes_first(monkeypatch: pytest.MonkeyPatch, prefetcher: Prefetcher) -> None:
    priorities: list[int] = []

    def look(place: Range) -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    monkeypatch.setattr(prefetch, "bring_in", look)
    monkeypatch.setattr(prefetch, "missing_bytes", lambda place: 0)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert prefetcher.bring(chunks(0, 1), name="model").done.wait(SECONDS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert priorities == [10] or os.uname().sysname != "Linux"


def test_an_unclosed_one_is_a_warning() -> None:
    prefetcher = Prefetcher()
    with pytest.warns(ResourceWarning, match="prefetcher"):
        del prefetcher
