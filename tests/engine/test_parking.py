"""What is parked: found by its beginning, in memory first, then in files, the oldest leaving first."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.engine import Parking, ParkingLot, parking
from shardload.engine.parked_files import ParkedFiles

OpenLot = Callable[..., ParkingLot]
KIB = 1024


@pytest.fixture
def open_lot(tmp_path: Path) -> Iterator[OpenLot]:
    """Lots over one directory, each with a clock that ticks at every look."""
    with ExitStack() as stack:
        ticks = itertools.count(1000)

        def create(
            memory: int = 100 * KIB, disk: int = 1000 * KIB, directory: Path | None = tmp_path
        ) -> ParkingLot:
            lot = ParkingLot(directory, memory, disk, clock=lambda: float(next(ticks)))
            stack.callback(lot.close)
            return lot

        yield create


def put(where: Parking, tokens: list[int], kib: int = 1) -> bytes:
    state = bytes(str(tokens), "ascii").ljust(kib * KIB, b".")
    where.put(tokens, memoryview(state))
    return state


def fetched(where: Parking, tokens: list[int]) -> tuple[int, bytes | None]:
    """How much of the tokens is found, and its state."""
    found = where.find(tokens)
    if found is None:
        return 0, None
    state = where.fetch(found.parked).result(30)
    return found.tokens, state.tobytes() if state is not None else None


def settle(lot: ParkingLot) -> None:
    """Wait for what the writer was asked to do before."""
    lot._writer.submit(lambda: None).result(30)


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_the_longest_beginning_is_found(open_lot: OpenLot) -> None:
    lot = open_lot()
    key = lot.of("key")
    short, long = put(key, [1, 2, 3]), put(key, [1, 2, 4, 5, 6])
    assert fetched(key, [1, 2, 3, 9]) == (3, short)
    assert fetched(key, [1, 2, 4, 5]) == (4, long)
    # Of equals, the smaller one.
    assert fetched(key, [1, 2, 9]) == (2, short)
    assert fetched(key, [7]) == (0, None)
    assert key.find([]) is None
    assert fetched(lot.of("other"), [1, 2, 3]) == (0, None)
    assert lot.of("key") is key


def test_a_kind_is_apart(open_lot: OpenLot) -> None:
    key = open_lot().of("key")
    key.put([1, 2], memoryview(b"a"), kind="a")
    key.put([1, 2, 3], memoryview(b"b"), kind="b")
    found = key.find([1, 2, 3], kind="a")
    assert found is not None
    assert found.tokens == 2
    assert not key.covers([1, 2, 3], kind="a")
    assert key.covers([1, 2], kind="b")
    assert key.find([1], kind="c") is None


def test_whole_states_only(open_lot: OpenLot) -> None:
    key = open_lot().of("key")
    put(key, [1, 2, 3, 4])
    assert key.find([1, 2, 3], whole=True) is None
    found = key.find([1, 2, 3, 4, 5], whole=True)
    assert found is not None
    assert found.tokens == 4
    assert key.covers([1, 2, 3])
    assert not key.covers([1, 2, 3], whole=True)
    assert key.covers([1, 2, 3, 4], whole=True)


def test_what_goes_on_from_another_replaces_it(open_lot: OpenLot) -> None:
    lot = open_lot()
    key = lot.of("key")
    put(key, [1, 2])
    put(key, [1, 2, 3], 2)
    assert lot.memory_bytes == 2 * KIB
    assert len(key.entries) == 1
    again = put(key, [1, 2, 3], 2)
    assert lot.memory_bytes == 2 * KIB
    assert fetched(key, [1, 2, 3]) == (3, again)


def test_without_a_directory_the_oldest_are_gone(open_lot: OpenLot, tmp_path: Path) -> None:
    lot = open_lot(memory=3 * KIB, directory=None)
    key = lot.of("key")
    states = [put(key, [number]) for number in range(3)]
    assert fetched(key, [0]) == (1, states[0])
    put(key, [3])
    assert fetched(key, [1]) == (0, None)
    assert fetched(key, [0]) == (1, states[0])
    assert lot.memory_bytes == 3 * KIB
    assert list(tmp_path.iterdir()) == []
    assert not key.accepts(3 * KIB + 1)


def test_the_oldest_go_to_disk_and_come_back(open_lot: OpenLot, tmp_path: Path) -> None:
    lot = open_lot(memory=3 * KIB)
    key = lot.of("key")
    states = [put(key, [number, 5]) for number in range(6)]
    settle(lot)
    assert lot.memory_bytes == 3 * KIB
    assert len(list(tmp_path.iterdir())) == 3
    assert 3 * KIB < disk_bytes(tmp_path) < 4 * KIB
    assert [fetched(key, [number, 5]) for number in range(6)] == [(2, state) for state in states]
    # What is on disk and goes on is not on disk any more.
    put(key, [0, 5, 6])
    settle(lot)
    assert fetched(key, [0, 5, 6])[0] == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_what_memory_never_holds_goes_to_disk_at_once(open_lot: OpenLot) -> None:
    lot = open_lot(memory=0)
    key = lot.of("key")
    state = put(key, [1, 2])
    settle(lot)
    assert lot.memory_bytes == 0
    assert fetched(key, [1, 2]) == (2, state)
    assert lot.memory_bytes == 0


def test_the_disk_has_a_limit(open_lot: OpenLot, tmp_path: Path) -> None:
    lot = open_lot(memory=0, disk=10 * KIB)
    key = lot.of("key")
    for number in range(20):
        put(key, [number])
        settle(lot)
    assert 7 * KIB < disk_bytes(tmp_path) <= 10 * KIB
    assert fetched(key, [19])[0] == 1
    assert fetched(key, [0]) == (0, None)
    assert not key.covers([0])
    left = list(tmp_path.iterdir())
    assert len(key.entries) == len(left)
    for path in left:
        path.unlink()
    assert fetched(key, [19]) == (1, None), "its file is gone, which shows when it is asked for"
    assert fetched(key, [19]) == (0, None)


def test_what_lost_its_file_and_is_in_memory_is_written_again(open_lot: OpenLot, tmp_path: Path) -> None:
    lot = open_lot()
    key = lot.of("key")
    put(key, [0])
    lot.flush()
    (path,) = tmp_path.iterdir()
    path.unlink()
    put(key, [1])
    lot.flush()
    lot.close()
    found = open_lot().of("key").entries
    assert sorted(parked.tokens.tolist() for parked in found) == [[0], [1]]


def test_a_slow_disk_is_not_swamped(open_lot: OpenLot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "BACKLOG_BYTES", 3 * KIB)
    lot = open_lot(memory=0)
    key = lot.of("key")
    gate = threading.Event()
    lot._writer.submit(gate.wait, 30)
    assert key.accepts(100 * KIB)
    put(key, [1], 2)
    assert key.accepts(KIB)
    assert not key.accepts(2 * KIB)
    gate.set()
    settle(lot)
    assert key.accepts(100 * KIB)
    # What is larger than memory is to hold comes through it all the same.
    monkeypatch.setattr(parking, "available_bytes", lambda: 150 * KIB)
    assert key.accepts(75 * KIB)
    assert not key.accepts(76 * KIB)
    assert not key.accepts(1001 * KIB)


def test_another_lot_finds_what_the_first_has_flushed(open_lot: OpenLot) -> None:
    first = open_lot()
    states = {number: put(first.of("key"), [number, 1]) for number in range(3)}
    put(first.of("other"), [9])
    first.close()
    first.close()
    assert first.memory_bytes == 0
    assert first.of("key").find([0, 1]) is None
    second = open_lot()
    key = second.of("key")
    assert second.memory_bytes == 0
    for number, state in states.items():
        assert fetched(key, [number, 1]) == (2, state)
    assert fetched(key, [9]) == (0, None)
    # Written once: nothing of it is written again.
    second.close()
    assert fetched(open_lot().of("key"), [2, 1]) == (2, states[2])


def test_two_servers_on_one_directory(open_lot: OpenLot, tmp_path: Path) -> None:
    one, other = open_lot(memory=0), open_lot(memory=0)
    mine = put(one.of("key"), [1])
    settle(one)
    assert fetched(other.of("key"), [1]) == (1, mine)
    put(other.of("key"), [1, 2])
    settle(other)
    # The other has gone on from there, and this one's file with it.
    settle(other)
    assert fetched(one.of("key"), [1, 3]) == (1, b"[1, 2]".ljust(KIB, b"."))
    for path in tmp_path.iterdir():
        path.unlink()
    assert fetched(one.of("key"), [1]) == (0, None)
    assert one.of("key").entries == []


def test_damage_costs_a_line_and_the_entry(
    open_lot: OpenLot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lot = open_lot(memory=0)
    key = lot.of("key")
    put(key, [1, 2])
    settle(lot)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        assert fetched(key, [1, 2]) == (2, None)
    assert "computed again" in caplog.text
    assert key.find([1, 2]) is None
    path.write_bytes(b"nonsense")
    assert open_lot().of("key").entries == []


def test_a_full_disk_is_a_warning(
    open_lot: OpenLot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lot = open_lot(memory=0)
    key = lot.of("key")

    def full(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ParkedFiles, "write", full)
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        put(key, [1, 2])
        settle(lot)
    assert "No space left" in caplog.text
    assert (lot.memory_bytes, key.entries) == (0, [])


def test_a_directory_that_cannot_be_used(
    open_lot: OpenLot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        lot = open_lot(memory=KIB, directory=tmp_path / "file")
    assert "memory only" in caplog.text
    put(lot.of("key"), [1])
    put(lot.of("key"), [2])
    assert fetched(lot.of("key"), [1]) == (0, None)
    lot.flush()
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_is_too_slow_at_the_end(
    open_lot: OpenLot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lot = open_lot()
    key = lot.of("key")
    put(key, [1])
    put(key, [2])
    gate = threading.Event()
    lot._writer.submit(gate.wait, 30)
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        lot.flush(limit_seconds=0.0)
    assert "2 conversations were not parked" in caplog.text
    gate.set()
    settle(lot)
    assert list(tmp_path.iterdir()) == []
    lot.flush()
    assert len(list(tmp_path.iterdir())) == 2


def test_whoever_is_read_while_the_lot_closes_gets_nothing_or_all(open_lot: OpenLot) -> None:
    lot = open_lot(memory=0)
    key = lot.of("key")
    state = put(key, [1])
    settle(lot)
    gate = threading.Event()
    lot._reader.submit(gate.wait, 30)
    found = key.find([1])
    assert found is not None
    fetch = key.fetch(found.parked)
    closing = threading.Thread(target=lot.close)
    closing.start()
    gate.set()
    closing.join(30)
    assert fetch.cancelled() or fetch.result(30) in (memoryview(state), None)
    assert key.fetch(found.parked).result(30) is None
    key.put([5], memoryview(b"late"))
    assert key.find([5]) is None
    assert not key.accepts(1)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(TOKENS, max_size=12), TOKENS, st.booleans())
def test_find_is_the_best_of_all(parked: list[list[int]], wanted: list[int], whole: bool) -> None:
    lot = ParkingLot(None, 10**6, 0)
    key = lot.of("key")
    for tokens in parked:
        key.put(tokens, memoryview(bytes(tokens)))

    def common(tokens: list[int]) -> int:
        same = 0
        for left, right in zip(tokens, wanted, strict=False):
            if left != right:
                break
            same += 1
        return same

    found = key.find(wanted, whole=whole)
    counts = [common(tokens) for tokens in parked if not whole or common(tokens) == len(tokens)]
    if whole:
        # What another one goes on from is not there any more.
        kept = [entry.tokens.tolist() for entry in key.entries]
        counts = [common(tokens) for tokens in kept if common(tokens) == len(tokens)]
    assert (found.tokens if found is not None else 0) == max(counts, default=0)
    if found is not None:
        state = key.fetch(found.parked).result(1)
        assert state is not None
        assert list(state)[: found.tokens] == wanted[: found.tokens]
    assert lot.memory_bytes == sum(entry.nbytes for entry in key.entries)
    lot.close()
