from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shardload.errors import HandleClosed
from shardload.memory import PAGE_BYTES, Range, streaming
from shardload.memory.streaming import Streamer

SECONDS = 30
LAYERS, LAYER_PAGES = 8, 16
WHOLE = LAYERS * LAYER_PAGES


class Memory:
    """Pages that are in memory, in the place of the system's, and somebody who computes with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident: set[int] = set()
        self.changed = threading.Condition()
        self.at = 0.0
        self.reads = self.evictions = 0
        for name in ("bring_in", "evict", "missing_bytes", "resident_bytes"):
            monkeypatch.setattr(streaming, name, getattr(self, name))

    def bring_in(self, place: Range) -> None:
        with self.changed:
            missing = self._pages(place) - self.resident
            self.resident |= missing
            self.reads += len(missing)
            self.changed.notify_all()

    def missing_bytes(self, place: Range) -> int:
        return place.length - self.resident_bytes(place.address, place.length)

    def evict(self, place: Range) -> int:
        with self.changed:
            self.evictions += len(self._pages(place) & self.resident)
            self.resident -= self._pages(place)
            self.changed.notify_all()
            return 0

    def resident_bytes(self, address: int, length: int) -> int:
        return len(self._pages(Range(address, length)) & self.resident) * PAGE_BYTES

    def until(self, predicate: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(predicate, SECONDS), sorted(self.resident)

    def compute(self, streamer: Streamer, steps: int = 1) -> None:
        """Go through all pages in order, each when it is in memory: what reading ahead is for."""
        for _ in range(steps):
            self.at = 0.0
            step = streamer.begin(lambda: self.at)
            for page in range(WHOLE):
                self.until(lambda page=page: page in self.resident)
                self.at = (page + 1) / WHOLE
            streamer.end(step)

    def _pages(self, place: Range) -> set[int]:
        return set(range(place.address // PAGE_BYTES, place.end // PAGE_BYTES))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 2 * PAGE_BYTES)
    return Memory(monkeypatch)


def layers() -> list[list[Range]]:
    size = LAYER_PAGES * PAGE_BYTES
    return [[Range(number * size, size)] for number in range(LAYERS)]


@pytest.fixture
def new_streamer() -> Iterator[Callable[..., Streamer]]:
    with ExitStack() as stack:

        def create(held_pages: int, window_pages: int = 6, **settings: Any) -> Streamer:
            streamer = Streamer(
                layers(), held_pages * PAGE_BYTES, window_bytes=window_pages * PAGE_BYTES, **settings
            )
            stack.callback(streamer.close)
            return streamer

        yield create


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("held_pages", [0, 77, WHOLE])
def test_a_pass_reads_what_is_not_held(
    memory: Memory, new_streamer: Callable[..., Streamer], threads: int, held_pages: int
) -> None:
    streamer = new_streamer(held_pages, threads=threads)
    assert streamer.held_bytes == held_pages * PAGE_BYTES
    assert streamer.streamed_bytes == (WHOLE - held_pages) * PAGE_BYTES
    memory.compute(streamer, steps=5)
    memory.until(lambda: memory.evictions == 5 * (WHOLE - held_pages))
    memory.until(lambda: held_pages == WHOLE or len(memory.resident) >= held_pages + 6)
    streamer.close()
    assert len(memory.resident) <= held_pages + 7
    stats = streamer.stats
    assert stats.passes == 5
    assert stats.dropped_bytes == 5 * (WHOLE - held_pages) * PAGE_BYTES == memory.evictions * PAGE_BYTES
    assert stats.read_bytes == (held_pages + 5 * (WHOLE - held_pages)) * PAGE_BYTES


def test_what_is_in_memory_before_leaves(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    memory.resident = set(range(WHOLE))
    streamer = new_streamer(64)
    memory.until(lambda: len(memory.resident) == 64 + 6)
    memory.compute(streamer)
    memory.until(lambda: memory.evictions == (64 - 6) + 64)
    streamer.close()
    # What was there already has not been read.
    assert streamer.stats.read_bytes == (64 - 6) * PAGE_BYTES


def test_holding_less_gives_memory_back_at_once(
    memory: Memory, new_streamer: Callable[..., Streamer]
) -> None:
    streamer = new_streamer(WHOLE)
    memory.compute(streamer)
    memory.until(lambda: len(memory.resident) == WHOLE)
    streamer.resize(40 * PAGE_BYTES)
    memory.until(lambda: len(memory.resident) in (46, 47))
    memory.compute(streamer, steps=2)
    streamer.resize(WHOLE * PAGE_BYTES)
    memory.compute(streamer)
    memory.until(lambda: len(memory.resident) == WHOLE)


def test_resizing_in_the_middle_of_a_step(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    streamer = new_streamer(64)
    for pages in (32, 0, 100, 64):
        memory.at = 0.0
        step = streamer.begin(lambda: memory.at)
        for page in range(WHOLE):
            if page == WHOLE // 2:
                streamer.resize(pages * PAGE_BYTES)
            memory.until(lambda page=page: page in memory.resident)
            memory.at = (page + 1) / WHOLE
        streamer.end(step)
    memory.compute(streamer)
    memory.until(lambda: len(memory.resident) in (70, 71))


def test_a_step_that_is_given_up_is_no_pass(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    streamer = new_streamer(64)
    memory.until(lambda: len(memory.resident) >= 6)
    step = streamer.begin(lambda: 0.0)
    streamer.end(step)
    streamer.end(step)
    assert streamer.stats.passes == 0
    memory.compute(streamer)
    assert streamer.stats.passes == 1


def test_a_step_of_several_passes(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    streamer = new_streamer(64)
    step = streamer.begin(lambda: memory.at)
    for page in range(3 * WHOLE):
        memory.until(lambda page=page: page % WHOLE in memory.resident)
        memory.at = (page + 1) / WHOLE
    streamer.end(step)
    memory.until(lambda: len(memory.resident) in (70, 71))
    assert streamer.stats.passes == 3


def test_steps_side_by_side_share_a_pass(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    streamer = new_streamer(0)
    for passes in (1, 2, 3):
        at = [0.0, 0.0]
        ahead = streamer.begin(lambda at=at: at[0])
        behind = streamer.begin(lambda at=at: at[1])
        for page in range(WHOLE):
            memory.until(lambda page=page: page in memory.resident)
            at[:] = (page + 1) / WHOLE, max(0, page - 3) / WHOLE
        streamer.end(ahead)
        for page in range(WHOLE - 4, WHOLE):
            memory.until(lambda page=page: page in memory.resident)
            at[1] = (page + 1) / WHOLE
        streamer.end(behind)
        assert streamer.stats.passes == passes
        memory.until(lambda passes=passes: memory.evictions == passes * WHOLE)
    memory.until(lambda: len(memory.resident) in (6, 7))
    assert memory.reads - len(memory.resident) == 3 * WHOLE


def test_the_slower_of_two_steps_finds_what_it_needs(
    memory: Memory, new_streamer: Callable[..., Streamer]
) -> None:
    streamer = new_streamer(0)
    slow = streamer.begin(lambda: memory.at)
    for _ in range(2):  # each reads for itself what is too far ahead
        streamer.end(streamer.begin(lambda: 1.0))
    for page in range(WHOLE):
        memory.until(lambda page=page: page in memory.resident)
        memory.at = (page + 1) / WHOLE
    streamer.end(slow)
    assert streamer.stats.passes == 2
    memory.compute(streamer)
    assert streamer.stats.passes == 3


def test_unknown_progress_reads_the_window_and_drops_in_the_end(
    memory: Memory, new_streamer: Callable[..., Streamer]
) -> None:
    streamer = new_streamer(64)
    step = streamer.begin(lambda: None)
    memory.until(lambda: len(memory.resident) >= 6)
    with memory.changed:
        memory.resident = set(range(WHOLE))  # the computation has read the rest itself
    streamer.end(step)
    memory.until(lambda: len(memory.resident) in (70, 71))
    assert streamer.stats.passes == 1


def test_waiting_is_counted(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    gate = threading.Event()
    bring_in = memory.bring_in

    def slowly(place: Range) -> None:
        assert gate.wait(SECONDS)
        bring_in(place)

    streaming.bring_in = slowly  # put back with the others
    streamer = new_streamer(0, threads=2)
    streamer.begin(lambda: 0.9)
    gate.set()
    memory.until(lambda: WHOLE * 9 // 10 in memory.resident)
    streamer.close()
    assert streamer.stats.waited_seconds > 0


@pytest.mark.parametrize("error", [OSError("the disk is gone"), MemoryError("the memory is gone")])
def test_failures_are_told_and_the_next_pass_tries_again(
    memory: Memory, new_streamer: Callable[..., Streamer], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    failed = threading.Event()
    bring_in = memory.bring_in

    def fail(place: Range) -> None:
        if not failed.is_set():
            failed.set()
            raise error
        bring_in(place)

    streaming.bring_in = fail  # put back with the others
    with caplog.at_level(logging.WARNING, "shardload.memory"):
        streamer = new_streamer(64, threads=1)
        assert failed.wait(SECONDS)
        memory.until(lambda: bool(memory.resident))
    assert str(error) in caplog.text
    for _ in range(2):
        step = streamer.begin(lambda: 1.0)
        streamer.end(step)
    memory.until(lambda: {0, 1} <= memory.resident)


def test_a_step_that_cannot_tell_its_progress_is_not_followed(
    memory: Memory, new_streamer: Callable[..., Streamer], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    told = threading.Event()

    def fail() -> float:
        asked.append(threading.get_ident())
        told.set()
        raise RuntimeError("nobody knows")

    streamer = new_streamer(0, threads=1)
    with caplog.at_level(logging.ERROR, "shardload.memory"):
        step = streamer.begin(fail)
        assert told.wait(SECONDS)
        streamer.end(step)
    assert "nobody knows" in caplog.text
    assert asked == [streamer._threads[0].ident]
    memory.compute(streamer)
    assert streamer.stats.passes == 2


def test_closed(memory: Memory, new_streamer: Callable[..., Streamer]) -> None:
    streamer = new_streamer(64)
    step = streamer.begin(lambda: 1.0)
    streamer.close()
    streamer.close()
    streamer.end(step)
    assert streamer.stats.passes == 0
    with pytest.raises(HandleClosed):
        streamer.begin(lambda: 0.0)
    with pytest.raises(HandleClosed):
        streamer.resize(0)
    assert not any(thread.name == "shardload-stream" for thread in threading.enumerate())


def test_nothing_to_stream(new_streamer: Callable[..., Streamer]) -> None:
    streamer = Streamer([], 0)
    step = streamer.begin(lambda: 0.5)
    streamer.end(step)
    streamer.close()


def test_a_mapped_file(mapped_file: Any) -> None:
    size = mapped_file.length // 4
    places = [[Range(mapped_file.address + number * size, size)] for number in range(4)]
    streamer = Streamer(places, mapped_file.length // 2, window_bytes=PAGE_BYTES)
    try:
        for _ in range(3):
            at = [0.0]
            step = streamer.begin(lambda at=at: at[0])
            for eighth in range(1, 9):
                at[0] = eighth / 8
            streamer.end(step)
    finally:
        streamer.close()
    assert streamer.stats.passes == 3
