"""What llama.cpp packed at a load is written to the store behind it, and mapped from there ever after."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shardload import memory
from shardload.errors import ShardloadError, format_bytes
from shardload.gguf import GGUFFile
from shardload.memory import MappedFile, Range, mapped_files
from shardload.memory.platform import current

if TYPE_CHECKING:
    from shardload.llama.layout_choice import LayoutChoice
    from shardload.llama.model import Model
    from shardload.llama.placed import Packing, PlacedTensor
    from shardload.shards.entry import PackedKey
    from shardload.shards.hold import Hold
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
        self._lock = threading.Lock()
        self._begun = False

    def begin(self) -> bool:
        """Take it up; False if nobody wants it any more."""
        with self._lock:
            self._begun = not self.cancelled
            return self._begun

    def cancel(self) -> None:
        """Write no more than what is being written, and wait for that."""
        with self._lock:
            self.cancelled = True
            if not self._begun:
                self.done.set()
        self.done.wait()


class Packer:
    """Packs one model after the other on a thread of its own, in the pauses of the computation.

    When no model is left it measures which order of bytes is the faster one, where nobody did. ``is_busy``
    tells whether a step is being computed; on any thread. Everything is borrowed.
    """

    def __init__(
        self, pantry: Pantry | None, choice: LayoutChoice | None, is_busy: Callable[[], bool]
    ) -> None:
        self.pantry, self._choice, self._is_busy = pantry, choice, is_busy
        self._jobs: SimpleQueue[PackingJob | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def pack(self, model: Model, on_change: Callable[[], None]) -> PackingJob:
        """Have a model packed; ``on_change`` is called on the packer's thread when tensors have moved."""
        job = PackingJob(model, on_change)
        with self._lock:
            if self._closed.is_set() or (self.pantry is None and self._choice is None):
                job.cancel()
                return job
            self._jobs.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shardload-packer", daemon=True)
                self._thread.start()
        return job

    def close(self) -> None:
        """Give up what is not written yet; it is packed after the next open. Idempotent."""
        with self._lock:
            self._closed.set()
            thread, self._thread = self._thread, None
            self._jobs.put(None)
        if thread is not None:
            thread.join()
        with suppress(Empty):
            while True:
                if (left := self._jobs.get_nowait()) is not None:
                    left.cancel()

    def _run(self) -> None:
        current().yield_to_others()
        types: set[str] = set()
        while (job := self._jobs.get()) is not None:
            self._work(job, types)
            del job  # and with it the model
            self._measure(types)

    def _work(self, job: PackingJob, types: set[str]) -> None:
        try:
            types.update(placed.type_name for placed in job.model.tensors if placed.packing is not None)
            if job.begin() and self.pantry is not None:
                self._pack(job, self.pantry)
        except (ShardloadError, OSError, ValueError) as error:
            logger.warning("%s is not packed: %s", job.model.path, error)
        except Exception:
            logger.exception("%s is not packed", job.model.path)
        finally:
            job.done.set()

    def _measure(self, types: set[str]) -> None:
        """Measure types while no model waits; what keeps it from that is no reason to pack no more."""
        if self._choice is None or not self._jobs.empty():
            return
        try:
            self._choice.measure(types, is_busy=self._is_busy, stops=self._has_other_work)
        except Exception:
            logger.exception("layouts are not measured")

    def _pack(self, job: PackingJob, pantry: Pantry) -> None:
        began = time.monotonic()
        moved_bytes = pack(job.model, pantry, stops=partial(self._stops, job), moved=job.on_change)
        if moved_bytes:
            size, seconds = format_bytes(moved_bytes), time.monotonic() - began
            logger.info("packed %s of %s in %.0f s, in pauses", size, job.model.path, seconds)

    def _has_other_work(self) -> bool:
        return self._closed.is_set() or not self._jobs.empty()

    def _stops(self, job: PackingJob) -> bool:
        """Whether to give up; returns when the computation pauses, so that it is not slowed down."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while self._is_busy() and time.monotonic() < patient_until:
            if job.cancelled or self._closed.wait(POLL_SECONDS):
                return True
        return job.cancelled or self._closed.is_set()


def pack(
    model: Model,
    pantry: Pantry,
    *,
    stops: Callable[[], bool] = lambda: False,
    moved: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> int:
    """Store what of an open model is packed in private memory or not at all, and go on from the store.

    ``progress`` is told the stage ("reading" or "packing"), bytes done and bytes in all. ``stops`` is asked
    before each piece of work. Returns the bytes that have moved, as the file has them. Raises StoreFull,
    StoreUnavailable, OSError, and a GGUFError where the file is gone; what has moved until then stays so.
    """
    if model.is_stored or stops():
        return 0  # what is stored was found by its digest: the file's contents are known
    with GGUFFile.open(model.path) as file:
        if not _is_of(model, file.statuses):
            return 0
        digests = pantry.digests_of(file, lambda done, total: progress("reading", done, total), stops)
    if digests is None:
        return 0
    tensors = [placed for placed in model.unstored_tensors if placed.name in digests]
    total = sum(placed.file.length for placed in tensors)
    moved_bytes, hold = 0, pantry.hold()
    for group in _groups(tensors):
        moves = _Moves(model, pantry, digests, hold)
        try:
            goes_on = moves.store_all(group, stops)
        finally:
            if moved_now := moves.carry_out():
                moved_bytes += moved_now
                moved()
                progress("packing", moved_bytes, total)
        if not goes_on:
            break
    return moved_bytes


def _is_of(model: Model, statuses: Iterable[os.stat_result]) -> bool:
    if model.is_of(statuses):
        return True
    logger.warning("%s was replaced while it is open: it is not packed", model.path)
    return False


def _groups(tensors: Sequence[PlacedTensor]) -> Iterator[list[PlacedTensor]]:
    group: list[PlacedTensor] = []
    for placed in tensors:
        group.append(placed)
        if sum(one.file.length for one in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


class _Moves:
    """Tensors that are written to the store, and then used from there all at once."""

    def __init__(self, model: Model, pantry: Pantry, digests: Mapping[str, str], hold: Hold) -> None:
        self._model, self._pantry, self._digests, self._hold = model, pantry, digests, hold
        self._moves: list[tuple[PlacedTensor, Range]] = []

    def store_all(self, group: Iterable[PlacedTensor], stops: Callable[[], bool]) -> bool:
        """Write their packed bytes where they are not there yet; False if ``stops`` or the file ended it."""
        return all(
            not stops() and (placed.packing is None or self._store(placed, placed.packing))
            for placed in group
        )

    def _store(self, placed: PlacedTensor, packing: Packing) -> bool:
        """Write one; False where the file has changed, so that nobody knows what was packed."""
        key = self._pantry.key(self._digests[placed.name], placed.type_name, placed.ne, packing.buffer_type)
        is_private = packing.is_private
        try:
            if not is_private:
                placed.pack()
                if not _is_of(self._model, map(os.stat, self._model.paths)):
                    return False
            file = self._mapped(key, packing)
        finally:
            if not is_private:
                memory.discard(packing.private)
        if file is not None:
            self._model.keep_mapped(file)
            self._moves.append((placed, Range(file.address, file.length)))
        return True

    def carry_out(self) -> int:
        """Read what was written from the store, and give private memory back; bytes as files have them."""
        if not self._moves:
            return 0
        packings = [placed.packing for placed, _ in self._moves if placed.packing is not None]
        read = [packing.source for packing in packings if packing.place is None]
        self._model.layouts.move(self._moves).wait()
        for packing in packings:
            memory.discard(packing.private)
        for source in read:
            # It was read to be packed, and must be in nobody's way where memory is short.
            memory.page_out(source.address, source.length)
        return sum(placed.file.length for placed, _ in self._moves)

    def _mapped(self, key: PackedKey, packing: Packing) -> MappedFile | None:
        """A file of the store that has exactly the bytes that are in private memory."""
        packing.hold = packing.hold or self._hold
        for _ in range(2):
            entry = self._pantry.stored(key, memory.view(packing.private), packing.hold)
            file = mapped_files().open(entry.path)
            if memory.same_bytes(Range(file.address, file.length), packing.private):
                return file
            file.release()
            logger.warning("%s is not what this llama.cpp packs: it is packed anew", entry.path)
            self._pantry.distrust([entry])
        return None
