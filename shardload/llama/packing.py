"""What llama.cpp packed at a load is written to the store behind it, and mapped from there ever after."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from shardload import memory
from shardload.errors import ShardloadError
from shardload.gguf import GGUFFile
from shardload.memory import Range, mapped_files
from shardload.memory.platform import current

if TYPE_CHECKING:
    from shardload.llama.layout_choice import LayoutChoice
    from shardload.llama.model import Model
    from shardload.llama.placed import PlacedTensor
    from shardload.shards.pantry import Pantry

logger = logging.getLogger("shardload.llama")

GROUP_BYTES = 64 * 2**20
"""So much is written before it is used from the store and the private memory given back."""
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60.0
"""For so long at most one piece of work waits for the computation to pause."""


class PackingJob:
    """The packing of one open model, which stays open until it is ``done``. On any thread."""

    def __init__(self, model: Model, on_change: Callable[[], None]) -> None:
        self.model, self.on_change = model, on_change
        self.cancelled = False
        self.done = threading.Event()

    def cancel(self) -> None:
        """Write no more than what is being written, and wait for that."""
        self.cancelled = True
        self.done.wait()


class Packer:
    """Packs one model after the other on a thread of its own, in the pauses of the computation.

    Then it has measured which order of bytes is the faster one, where nobody did. ``is_busy`` tells whether a
    step is being computed; on any thread. Everything is borrowed.
    """

    def __init__(
        self, pantry: Pantry | None, choice: LayoutChoice | None, is_busy: Callable[[], bool]
    ) -> None:
        self.pantry, self._choice, self._is_busy = pantry, choice, is_busy
        self._jobs: SimpleQueue[PackingJob | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def pack(self, model: Model, on_change: Callable[[], None]) -> PackingJob:
        """Have a model packed; ``on_change`` is called on the packer's thread when tensors have moved."""
        job = PackingJob(model, on_change)
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shardload-packer", daemon=True)
            self._thread.start()
        return job

    def close(self) -> None:
        """Give up what is not written yet; it is packed after the next open. Idempotent."""
        self._closed.set()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        current().yield_to_others()
        while (job := self._jobs.get()) is not None:
            try:
                self._work(job)
            except (ShardloadError, OSError, ValueError) as error:
                logger.warning("%s is not packed: %s", job.model.path, error)
            except Exception:
                logger.exception("%s is not packed", job.model.path)
            finally:
                job.done.set()

    def _work(self, job: PackingJob) -> None:
        types = {placed.type_name for placed in job.model.tensors if placed.packing is not None}
        if self.pantry is not None:
            pack(job.model, self.pantry, stops=partial(self._stops, job), moved=job.on_change)
        if self._choice is not None:
            self._choice.measure(types, is_busy=self._is_busy, stops=lambda: self._gave_up(job))

    def _gave_up(self, job: PackingJob) -> bool:
        return job.cancelled or self._closed.is_set()

    def _stops(self, job: PackingJob) -> bool:
        """Whether to give up; returns when the computation pauses, so that it is not slowed down."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while self._is_busy() and time.monotonic() < patient_until:
            if job.cancelled or self._closed.wait(POLL_SECONDS):
                return True
        return self._gave_up(job)


def pack(
    model: Model,
    pantry: Pantry,
    *,
    stops: Callable[[], bool] = lambda: False,
    moved: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> int:
    """Store what of an open model is packed in private memory, and go on from the store.

    ``progress`` is told the stage ("reading" or "packing"), bytes done and bytes in all. Returns the bytes
    that have moved. Raises StoreFull and StoreUnavailable; what has moved until then stays so.
    """
    if stops():
        return 0
    with GGUFFile.open(model.path) as file:
        digests = pantry.digests_of(file, lambda done, total: progress("reading", done, total), stops)
    if digests is None:
        return 0
    tensors = model.private_tensors
    total = sum(placed.file.length for placed in tensors)
    done = 0
    for group in _groups(tensors):
        if stops():
            break
        _move(model, pantry, group, digests)
        done += sum(placed.file.length for placed in group)
        moved()
        progress("packing", done, total)
    return done


def _groups(tensors: list[PlacedTensor]) -> Iterator[list[PlacedTensor]]:
    group: list[PlacedTensor] = []
    for placed in tensors:
        group.append(placed)
        if sum(one.file.length for one in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _move(model: Model, pantry: Pantry, group: list[PlacedTensor], digests: Mapping[str, str]) -> None:
    """Write some tensors to the store, map them from there, and give their private memory back."""
    moves: list[tuple[PlacedTensor, Range]] = []
    for placed in group:
        packing = placed.packing
        if packing is None or placed.name not in digests:
            continue
        key = pantry.key(digests[placed.name], placed.type_name, placed.ne, packing.buffer_type)
        file = mapped_files().open(pantry.stored(key, partial(memory.view, packing.private)))
        if file.length != packing.private.length:
            file.release()
            continue
        model.keep_mapped(file)
        moves.append((placed, Range(file.address, file.length)))
    model.layouts.move(moves).wait()
    for placed, _ in moves:
        if placed.packing is not None:
            memory.discard(placed.packing.private)
