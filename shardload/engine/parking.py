"""Where conversations wait that had to leave the KV cache: in memory first, then in files.

What was used longest ago leaves memory for a file, and the files for good. A state that another one goes on
from is not kept beside it. What cannot be kept or does not come back is computed again, never missed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shardload.engine.parked_files import FileFacts, ParkedFiles
from shardload.memory import available_bytes
from shardload.memory.platform import current
from shardload.work_thread import WorkThread

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("shardload.engine")

State = memoryview
MINIMUM_TOKENS = 64
"""Fewer are computed as fast as they are fetched."""
BACKLOG_BYTES = 2**28
"""What may wait for the disk, where memory is to hold less."""
FLUSH_SECONDS = 20.0


@dataclass(slots=True, eq=False)
class Parked:
    """The saved KV of some tokens, in memory, in a file, or both; belongs to its lot."""

    key: str
    kind: str
    tokens: NDArray[np.int32]
    nbytes: int
    last_used: float
    state: State | None = None
    name: str | None = None
    is_leaving: bool = False
    """It is being written, after which memory need not hold it."""


class Found(NamedTuple):
    """What is parked, and how many of the tokens that were asked for it begins with."""

    parked: Parked
    tokens: int


class ParkingLot:
    """All that is parked for all models; any thread may use it.

    ``memory_limit_bytes`` may be exceeded by what is being written. A ``directory`` of None, or one that
    cannot be used, is memory only. Closed by ``close``, which writes what only memory holds.
    """

    def __init__(
        self,
        directory: Path | None,
        memory_limit_bytes: int,
        disk_limit_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._memory_limit_bytes, self._clock = memory_limit_bytes, clock
        self._files = _files_in(directory, disk_limit_bytes)
        self._lock = threading.Lock()
        self._parkings: dict[str, Parking] = {}
        self._memory_bytes = self._leaving_bytes = 0
        # Writing takes no time from computing; somebody waits for what is read.
        self._writer = WorkThread("shardload-parking-writer", current().yield_to_others)
        self._reader = WorkThread("shardload-parking-reader")
        self._closed = False

    def of(self, key: str) -> Parking:
        """The parking of one set of weights; looks at its files, on a thread that has time for that."""
        with self._lock:
            parking = self._parkings.setdefault(key, Parking(self, key))
        if self._files is not None:
            try:
                self._look(self._files, parking)
            except OSError as error:
                logger.warning("what is parked on disk cannot be found: %s", error)
        return parking

    @property
    def memory_bytes(self) -> int:
        """What is parked in memory now; private memory of this process."""
        return self._memory_bytes

    def flush(self, limit_seconds: float = FLUSH_SECONDS) -> None:
        """Write everything that is in memory only; what takes longer than the limit is lost at the end."""
        with self._lock:
            unwritten = sorted(
                (parked for parked in self._all() if parked.name is None and parked.state is not None),
                key=attrgetter("last_used"),
                reverse=True,
            )
            if self._files is None or self._closed:
                return
            # Those that are leaving were handed over before; the one thread does them first.
            writes = [self._writer.submit(self._write, parked) for parked in unwritten]
        _, late = wait(writes, limit_seconds)
        for write in late:
            write.cancel()
        if late:
            logger.warning("%d conversations were not parked: the disk is too slow", len(late))

    def close(self) -> None:
        """Flush, and end the threads. Idempotent; nothing is kept or found afterwards."""
        self.flush()
        with self._lock:
            self._closed = True
            for parked in self._all():
                parked.state = None
            for parking in self._parkings.values():
                parking.entries.clear()
            self._memory_bytes = self._leaving_bytes = 0
        self._writer.close()
        self._reader.close()

    # -- for Parking

    def find(
        self, entries: Sequence[Parked], tokens: Sequence[int], kind: str, *, whole: bool
    ) -> Found | None:
        with self._lock:
            candidates = [parked for parked in entries if parked.kind == kind]
        if not candidates:
            return None
        wanted = np.asarray(tokens, np.int32)
        found = None
        for parked in candidates:
            count = common_tokens(parked.tokens, wanted)
            if whole and count < len(parked.tokens):
                continue
            if count and (found is None or _rank(parked, count) > _rank(*found)):
                found = Found(parked, count)
        return found

    def fetch(self, parked: Parked) -> Future[State | None]:
        future: Future[State | None] = Future()
        with self._lock:
            parked.last_used = self._clock()
            state, name = parked.state, parked.name
            if state is None and name is not None and self._files is not None and not self._closed:
                return self._reader.submit(self._read, self._files, parked, name)
        future.set_result(state)
        return future

    def accepts(self, nbytes: int) -> bool:
        with self._lock:
            closed, backlog = self._closed, self._leaving_bytes
        disk_bytes = self._files.limit_bytes if self._files is not None else 0
        if closed or nbytes > max(self._memory_limit_bytes, disk_bytes):
            return False
        if backlog + nbytes <= max(self._memory_limit_bytes, BACKLOG_BYTES):
            return True
        # On its way to the disk it is in memory, and nobody else is to leave for that.
        return not backlog and 2 * nbytes <= available_bytes()

    def put(self, parking: Parking, tokens: Sequence[int], state: State, kind: str) -> None:
        parked = Parked(parking.key, kind, np.asarray(tokens, np.int32), state.nbytes, self._clock(), state)
        with self._lock:
            if self._closed:
                return
            replaced = [other for other in parking.entries if _goes_on_from(parked, other)]
            for other in replaced:
                self._drop(other)
            # Before anything is written: the new file may have the name of an old one.
            self._remove([other.name for other in replaced if other.name is not None])
            parking.entries.append(parked)
            self._memory_bytes += parked.nbytes
            self._relieve()

    def covers(self, entries: Sequence[Parked], tokens: Sequence[int], kind: str, *, whole: bool) -> bool:
        found = self.find(entries, tokens, kind, whole=whole)
        if found is None or found.tokens < len(tokens):
            return False
        found.parked.last_used = self._clock()
        return True

    # -- with the lock

    def _all(self) -> Iterator[Parked]:
        return (parked for parking in self._parkings.values() for parked in parking.entries)

    def _relieve(self) -> None:
        """Have what was used longest ago leave memory, until what stays is within the limit."""
        staying = sorted(
            (one for one in self._all() if one.state is not None and not one.is_leaving),
            key=attrgetter("last_used"),
        )
        for parked in staying:
            if self._memory_bytes - self._leaving_bytes <= self._memory_limit_bytes:
                return
            if parked.name is not None:
                self._forget_state(parked)
            elif self._files is None:
                self._drop(parked)
            else:
                parked.is_leaving = True
                self._leaving_bytes += parked.nbytes
                self._writer.submit(self._write, parked)

    def _forget_state(self, parked: Parked) -> None:
        if parked.state is not None:
            parked.state = None
            self._memory_bytes -= parked.nbytes
        if parked.is_leaving:
            parked.is_leaving = False
            self._leaving_bytes -= parked.nbytes

    def _drop(self, parked: Parked) -> None:
        entries = self._parkings[parked.key].entries
        if parked in entries:
            entries.remove(parked)
            self._forget_state(parked)

    def _remove(self, names: list[str]) -> None:
        """Files that nobody will ask for again; on the thread that has time for that."""
        if names and self._files is not None:
            self._writer.submit(_remove_files, self._files, names)

    # -- on the threads beside

    def _write(self, parked: Parked) -> None:
        files, state, name = self._files, parked.state, None
        assert files is not None
        if state is None or parked.name is not None:
            return
        try:
            name = files.write(parked.key, parked.kind, parked.tokens, state, parked.last_used)
        except OSError as error:
            logger.warning("a conversation of %d tokens cannot be parked: %s", len(parked.tokens), error)
        with self._lock:
            was_dropped = parked.state is None
            parked.name = name
            if parked.is_leaving:
                self._forget_state(parked)
                if name is None:
                    self._drop(parked)
        if was_dropped and name is not None:
            _remove_files(files, [name])
        with suppress(OSError):
            self._forget_lost(files)

    def _forget_lost(self, files: ParkedFiles, key: str | None = None) -> list[str]:
        """Look which files are there, and let go of those that the limit or somebody else has removed."""
        with self._lock:
            named = [one for one in self._all() if one.name is not None and key in (None, one.key)]
        names = files.names(key)
        there = set(names)
        with self._lock:
            for parked in named:
                if parked.name not in there:
                    parked.name = None
                    if parked.state is None:
                        self._drop(parked)
        return names

    def _read(self, files: ParkedFiles, parked: Parked, name: str) -> State | None:
        facts = FileFacts(name, parked.key, parked.kind, parked.tokens, parked.nbytes, parked.last_used)
        try:
            state = files.read(facts)
        except OSError as error:
            logger.warning("a parked conversation cannot be read, it will be computed again: %s", error)
            state = None
        if state is None:
            with self._lock:
                self._drop(parked)
        return state

    def _look(self, files: ParkedFiles, parking: Parking) -> None:
        names = self._forget_lost(files, parking.key)
        with self._lock:
            known = {parked.name for parked in parking.entries}
        new = [files.facts(name, parking.key) for name in names if name not in known]
        with self._lock:
            known = {parked.name for parked in parking.entries}
            for facts in new:
                if facts is not None and facts.name not in known and not self._closed:
                    one = Parked(facts.key, facts.kind, facts.tokens, facts.state_bytes, facts.last_used)
                    one.name = facts.name
                    parking.entries.append(one)


class Parking:
    """What is parked for one set of weights; made by ``ParkingLot.of``. Any thread may use it."""

    __slots__ = ("entries", "key", "lot")

    def __init__(self, lot: ParkingLot, key: str) -> None:
        self.lot, self.key = lot, key
        self.entries: list[Parked] = []
        """The lot's own."""

    def find(self, tokens: Sequence[int], *, kind: str = "", whole: bool = False) -> Found | None:
        """What begins with most of the tokens; with ``whole`` only what they go on from."""
        return self.lot.find(self.entries, tokens, kind, whole=whole)

    def fetch(self, parked: Parked) -> Future[State | None]:
        """The state: there at once if it is in memory. None, and a line in the log, if it is lost."""
        return self.lot.fetch(parked)

    def covers(self, tokens: Sequence[int], *, kind: str = "", whole: bool = False) -> bool:
        """Whether there is no need to save these; that counts as a use."""
        return self.lot.covers(self.entries, tokens, kind, whole=whole)

    def accepts(self, nbytes: int) -> bool:
        """Whether there is room for so much, now or when the disk has caught up."""
        return self.lot.accepts(nbytes)

    def put(self, tokens: Sequence[int], state: State, *, kind: str = "") -> None:
        """Keep the state of some tokens; the memory belongs to the lot from now on."""
        self.lot.put(self, tokens, state, kind)


def common_tokens(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    """The number of tokens at the beginning of both."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def _rank(parked: Parked, count: int) -> tuple[int, bool, int, float]:
    """The longest beginning; of equals what is in memory, then what is smaller, then what is younger."""
    return count, parked.state is not None, -len(parked.tokens), parked.last_used


def _goes_on_from(parked: Parked, other: Parked) -> bool:
    return parked.kind == other.kind and common_tokens(parked.tokens, other.tokens) == len(other.tokens)


def _files_in(directory: Path | None, limit_bytes: int) -> ParkedFiles | None:
    if directory is None or limit_bytes <= 0:
        return None
    try:
        return ParkedFiles(directory, limit_bytes)
    except OSError as error:
        logger.warning("conversations are parked in memory only: %s", error)
        return None


def _remove_files(files: ParkedFiles, names: list[str]) -> None:
    for name in names:
        with suppress(OSError):
            files.remove(name)
