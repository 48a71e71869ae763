from __future__ import annotations

import errno
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from packable import PACKED, Said, linux_only, open_shelved, said_by, say, small_model, speaking

from shardload.llama import Model
from shardload.llama import packing as packing_module
from shardload.llama.packing import Packer, PackingJob
from shardload.shards.objects import Objects
from shardload.shards.pantry import Pantry

pytestmark = linux_only

SECONDS = 30


class Lane:
    """Whether something is computed, as a test says."""

    def __init__(self, *, busy: bool = False) -> None:
        self.busy = busy
        self.asked = threading.Semaphore(0)

    def is_busy(self) -> bool:
        self.asked.release()
        return self.busy


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture
def packer(pantry: Pantry, lane: Lane) -> Iterator[Packer]:
    made = Packer(pantry, None, lane.is_busy)
    yield made
    made.close()


def nothing() -> None:
    pass


def test_models_are_packed_in_the_background(
    path: Path, packer: Packer, pantry: Pantry, caplog: pytest.LogCaptureFixture
) -> None:
    changed = threading.Event()
    with caplog.at_level("INFO", "shardload.llama"), open_shelved(path, pantry) as model:
        job = packer.pack(model, changed.set)
        assert job.done.wait(SECONDS)
        (told,) = (line for line in caplog.messages if line.startswith("packed "))
        assert str(path) in told
        assert changed.is_set()
        assert model.private_tensors == []
        job.cancel()


def test_tensors_move_while_another_thread_computes(path: Path, packer: Packer, pantry: Pantry) -> None:
    expected = said_by(path, PACKED)
    said: list[Said] = []
    with open_shelved(path, pantry) as model, speaking(model) as speak:
        job = packer.pack(model, nothing)

        def compute() -> None:
            while not job.done.is_set() or not said:
                said.append(speak())

        lane = threading.Thread(target=compute)
        lane.start()
        assert job.done.wait(SECONDS)
        lane.join(SECONDS)
        assert model.private_tensors == []
        assert speak() == expected
    assert all(one == expected for one in said)


def test_nothing_is_packed_while_something_is_computed(
    path: Path, packer: Packer, pantry: Pantry, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane.busy = True
    work: list[bool] = []
    for name in ("digests_of", "stored"):
        real = getattr(pantry, name)

        def note(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            work.append(lane.busy)
            return real(*arguments)

        monkeypatch.setattr(pantry, name, note)
    with open_shelved(path, pantry) as model:
        job = packer.pack(model, nothing)
        for _ in range(3):
            assert lane.asked.acquire(timeout=SECONDS)
        assert (work, job.done.is_set()) == ([], False)
        lane.busy = False
        assert job.done.wait(SECONDS)
        assert model.private_tensors == []
    assert len(work) > 10
    assert not any(work)


def test_waiting_for_a_pause_has_an_end(
    path: Path, packer: Packer, pantry: Pantry, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "PATIENCE_SECONDS", 0.001)
    monkeypatch.setattr(packing_module, "POLL_SECONDS", 0.001)
    lane.busy = True
    with open_shelved(path, pantry) as model:
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert model.private_tensors == []


def test_closing_a_model_ends_its_packing(path: Path, packer: Packer, pantry: Pantry, lane: Lane) -> None:
    lane.busy = True
    with open_shelved(path, pantry) as model:
        job = packer.pack(model, nothing)
        assert lane.asked.acquire(timeout=SECONDS)
        job.cancel()
        assert job.done.is_set()
        assert model.private_tensors != []
    assert pantry.store.entries() == []


def test_closing_a_model_that_waits_for_another_one(
    path: Path, packer: Packer, pantry: Pantry, lane: Lane, tmp_path: Path
) -> None:
    lane.busy = True
    other = small_model(tmp_path / "other.gguf", "Q4_0")
    with open_shelved(path, pantry) as model:
        first = packer.pack(model, nothing)
        with open_shelved(other, pantry) as waiting:
            second = packer.pack(waiting, nothing)
            second.cancel()
        assert not first.done.is_set()
        lane.busy = False
        assert first.done.wait(SECONDS)
        assert model.private_tensors == []


def test_closing_in_the_middle_keeps_what_is_written(
    path: Path, packer: Packer, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = said_by(path, PACKED)
    stored, reached = pantry.stored, threading.Semaphore(0)
    jobs: list[PackingJob] = []

    def store(*arguments: Any) -> Any:
        reached.release()
        while len(pantry.store.entries()) == 3 and not jobs[0].cancelled:
            pass
        return stored(*arguments)

    monkeypatch.setattr(pantry, "stored", store)
    with open_shelved(path, pantry) as model:
        all_tensors = len(model.private_tensors)
        jobs.append(packer.pack(model, nothing))
        for _ in range(4):
            assert reached.acquire(timeout=SECONDS)
        jobs[0].cancel()
        assert len(model.private_tensors) == all_tensors - 4
        assert say(model) == expected
    with open_shelved(path, pantry) as model:
        assert len(model.private_tensors) == all_tensors - 4
        assert say(model) == expected


def test_a_packer_that_is_closed_leaves_nobody_waiting(path: Path, pantry: Pantry) -> None:
    lane = Lane(busy=True)
    packer = Packer(pantry, None, lane.is_busy)
    with open_shelved(path, pantry) as model:
        jobs = [packer.pack(model, nothing) for _ in range(3)]
        assert lane.asked.acquire(timeout=SECONDS)
        packer.close()
        jobs.append(packer.pack(model, nothing))
        assert all(job.done.is_set() for job in jobs)
        for job in jobs:
            job.cancel()
    packer.close()
    assert not any(thread.name == "shardload-packer" for thread in threading.enumerate())


def test_an_error_of_one_model_leaves_the_others(
    path: Path, packer: Packer, pantry: Pantry, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("who would have thought")

    with open_shelved(path, pantry) as model:
        assert packer.pack(model, fail).done.wait(SECONDS)
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert say(model) == said_by(path, PACKED)
    assert "is not packed" in caplog.text


def test_nothing_that_goes_wrong_leaves_anybody_waiting(
    path: Path,
    packer: Packer,
    pantry: Pantry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Any) -> None:
        raise MemoryError("who would have thought")

    with open_shelved(path, pantry) as model:
        with monkeypatch.context() as patch:
            patch.setattr(PackingJob, "begin", fail)
            assert packer.pack(model, nothing).done.wait(SECONDS)
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert model.private_tensors == []
    assert "is not packed" in caplog.text


def test_models_are_packed_where_types_cannot_be_measured(
    path: Path, pantry: Pantry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Semaphore(0)

    def fail(*_: Any, **__: Any) -> None:
        failed.release()
        raise MemoryError("who would have thought")

    choice: Any = Choice()
    choice.measure = fail
    other = small_model(tmp_path / "other.gguf", "Q4_0")
    with (
        closing(Packer(pantry, choice, lambda: False)) as packer,
        open_shelved(path, pantry) as model,
        open_shelved(other, pantry) as second,
    ):
        for one in (model, second):
            assert packer.pack(one, nothing).done.wait(SECONDS)
            assert failed.acquire(timeout=SECONDS)
            assert one.private_tensors == []
    assert "are not measured" in caplog.text


def test_models_are_not_kept_after_their_packing(path: Path, packer: Packer, pantry: Pantry) -> None:
    model = open_shelved(path, pantry)
    assert packer.pack(model, nothing).done.wait(SECONDS)
    seen = weakref.ref(model)
    model.close()
    del model
    packer.close()
    gc.collect()
    assert seen() is None


class Choice:
    """Measures nothing, and notes what it was asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.begun = threading.Event()

    def measure(self, types: Any, *, is_busy: Callable[[], bool], stops: Callable[[], bool]) -> None:
        self.asked.append(tuple(sorted(types)))
        self.begun.set()
        while not stops():
            pass


def test_measuring_holds_up_neither_closing_nor_packing(path: Path, pantry: Pantry, tmp_path: Path) -> None:
    choice: Any = Choice()
    packer = Packer(pantry, choice, lambda: False)
    other = small_model(tmp_path / "other.gguf", "Q4_0")
    with open_shelved(path, pantry) as model, open_shelved(other, pantry) as second:
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert choice.begun.wait(SECONDS)
        choice.begun.clear()
        assert packer.pack(second, nothing).done.wait(SECONDS)
        assert choice.begun.wait(SECONDS)
    packer.close()
    assert choice.asked == [("q4_K",), ("q4_0", "q4_K")]


def test_without_a_store_types_are_measured_all_the_same(path: Path) -> None:
    choice: Any = Choice()
    packer = Packer(None, choice, lambda: False)
    with Model.open([path], PACKED) as model:
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert model.private_tensors != []
        assert choice.begun.wait(SECONDS)
        packer.close()
    assert choice.asked == [("q4_K",)]


def test_a_store_that_refuses_is_a_warning(
    path: Path,
    packer: Packer,
    pantry: Pantry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Objects, "write", refuse)
    expected = said_by(path, PACKED)
    with caplog.at_level(logging.WARNING, "shardload.llama"), open_shelved(path, pantry) as model:
        assert packer.pack(model, nothing).done.wait(SECONDS)
        assert say(model) == expected
    assert "is not packed" in caplog.text
