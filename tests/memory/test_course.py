"""A cursor goes round; what is read and dropped for it is recorded in a set of pages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.memory import PAGE_BYTES, Range
from shardload.memory.course import Course, Drop, Read
from shardload.memory.division import divide

CHUNK = 4 * PAGE_BYTES


def make_course(layer_pages: list[int], held: float, window_pages: int, at: float = 0.0) -> Course:
    layers, address = [], 0
    for count in layer_pages:
        layers.append([Range(address, count * PAGE_BYTES)])
        address += (count + 1) * PAGE_BYTES
    divisions = divide(layers, int(sum(layer_pages) * PAGE_BYTES * held))
    shares = [1.0] * len(layers)
    return Course(divisions, shares, window_bytes=window_pages * PAGE_BYTES, chunk_bytes=CHUNK, at=at)


class Memory:
    """Does what a course says, and holds what must be true after each thing it says."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.resident: set[int] = set()
        self.read_pages = self.streamed_reads = 0
        self.under_way: list[Read] = []

    def obey(self, at: float, *, running: bool, slow: int = 0) -> None:
        while (task := self.course.next(at, running=running)) is not None:
            if isinstance(task, Drop):
                assert task.number < self.course.layer_at(at), "dropped before it was used"
                for place in self.course.divisions[task.layer].streamed:
                    self.resident -= _pages(place)
            else:
                self.under_way.append(task)
                while len(self.under_way) > slow:
                    self._finish()
        while self.under_way:
            self._finish()

    def _finish(self) -> None:
        read = self.under_way.pop(0)
        missing = _pages(read.chunk.place) - self.resident
        self.resident |= missing
        self.read_pages += len(missing)
        self.streamed_reads += 0 if read.chunk.held else len(missing)
        self.course.finished(read)


def _pages(place: Range) -> set[int]:
    return set(range(place.address // PAGE_BYTES, place.end // PAGE_BYTES))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.floats(0, 1),
    st.integers(1, 60),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_each_pass_reads_what_is_not_held_once(
    layer_pages: list[int], held: float, window_pages: int, slow: int, seed: int
) -> None:
    course = make_course(layer_pages, held, window_pages)
    memory = Memory(course)
    memory.obey(0, running=False, slow=slow)
    moves = random.Random(seed)
    streamed_pages = course.pass_bytes // PAGE_BYTES
    held_pages = sum(layer_pages) - streamed_pages
    largest = max(division.streamed_bytes for division in course.divisions) // PAGE_BYTES
    for number in range(4):
        before = memory.streamed_reads
        at = float(number)
        while at < number + 1:
            memory.obey(at, running=True, slow=slow)
            assert len(memory.resident) <= held_pages + window_pages + 3 * largest + CHUNK // PAGE_BYTES
            # Fine steps: a cursor that jumps leaves to the computation what it skips.
            at += moves.random() / (4 * len(layer_pages) + streamed_pages)
        memory.obey(number + 1, running=False, slow=slow)
        if number:
            fits = streamed_pages <= window_pages
            assert memory.streamed_reads - before == (0 if fits else streamed_pages)
    assert memory.read_pages == memory.streamed_reads + held_pages


def test_the_window_is_in_memory_before_the_step_begins() -> None:
    course = make_course([10] * 4, 0.5, 8)
    memory = Memory(course)
    memory.obey(0, running=False)
    window = {page for place in course.window(0) for page in _pages(place)}
    assert window <= memory.resident
    assert 8 <= len(window) < 8 + CHUNK // PAGE_BYTES


def test_a_layer_is_dropped_when_the_next_is_half_done() -> None:
    course = make_course([4] * 4, 0, 4)
    memory = Memory(course)
    memory.obey(0.1, running=True)
    memory.obey(0.25 + 0.1, running=True)
    assert _pages(course.divisions[0].streamed[0]) <= memory.resident
    memory.obey(0.25 + 0.13, running=True)
    assert not _pages(course.divisions[0].streamed[0]) & memory.resident


def test_nothing_is_dropped_that_fits_the_window() -> None:
    course = make_course([4] * 4, 0, 16)
    memory = Memory(course)
    for quarter in range(12):
        memory.obey(quarter / 4, running=True)
    assert memory.read_pages == len(memory.resident) == 16


def test_what_the_computation_has_passed_is_not_read() -> None:
    course = make_course([4] * 4, 0, 4)
    task = course.next(0.76, running=True)
    assert isinstance(task, Drop)
    while isinstance(task, Drop):
        task = course.next(0.76, running=True)
    assert isinstance(task, Read)
    assert task.chunk.layer == 3


def test_a_layer_that_is_being_read_is_not_dropped() -> None:
    course = make_course([4] * 2, 0, 2)
    read = course.next(0, running=True)
    assert isinstance(read, Read)
    assert course.next(1, running=False) is None
    course.finished(read)
    assert isinstance(course.next(1, running=False), Drop)


def test_what_is_rare_is_dropped_and_not_read_ahead() -> None:
    layers = [[Range(16 * number * PAGE_BYTES, 16 * PAGE_BYTES)] for number in range(4)]
    rare = [[Range(layer[0].address + 4 * PAGE_BYTES, 12 * PAGE_BYTES)] for layer in layers]
    divisions = divide(layers, 0)
    course = Course(divisions, [1.0] * 4, window_bytes=4 * PAGE_BYTES, chunk_bytes=CHUNK, rare=rare)
    assert course.pass_bytes == 16 * PAGE_BYTES
    memory = Memory(course)
    for step in range(17):
        memory.obey(step / 16, running=True)
        if step == 2:
            memory.resident |= _pages(rare[0][0])  # the computation has needed it
    assert memory.read_pages == 16 + 4
    assert not memory.resident & _pages(rare[0][0])


def test_starving() -> None:
    course = make_course([4] * 2, 0, 3)
    assert course.starved(0)
    read = course.next(0, running=True)
    assert isinstance(read, Read)
    assert course.starved(0)
    course.finished(read)
    assert not course.starved(0)
    assert course.starved(0.5)


def test_beginning_in_the_middle() -> None:
    course = make_course([4] * 4, 0, 4, at=7.5)
    read = course.next(7.5, running=True)
    assert isinstance(read, Read)
    assert read.chunk.layer == 2


def test_layers_take_their_share_of_a_pass() -> None:
    divisions = divide([[Range(0, PAGE_BYTES)], [Range(PAGE_BYTES, 3 * PAGE_BYTES)]], 0)
    course = Course(divisions, [3, 1], window_bytes=1, chunk_bytes=CHUNK)
    assert course.layer_at(0.75) == 1
    assert course.layer_at(2.375) == 4.5
    assert course.bytes_at(0.375) == PAGE_BYTES / 2
    assert course.bytes_at(1.875) == (4 + 1 + 1.5) * PAGE_BYTES
    assert course.layer_at(1) == 2


@pytest.mark.parametrize("layers", [[], [[]], [[], [Range(0, PAGE_BYTES)], []]])
def test_layers_without_anything(layers: list[list[Range]]) -> None:
    course = Course(divide(layers, 0), [1.0] * len(layers), window_bytes=PAGE_BYTES, chunk_bytes=CHUNK)
    memory = Memory(course)
    for at in (0, 0.5, 1):
        memory.obey(at, running=True)
    assert len(memory.resident) <= 1
