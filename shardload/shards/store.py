"""The packed store: weights in the order that kernels want, kept on disk under what decides their bytes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shardload.errors import StoreFull, StoreUnavailable, format_bytes
from shardload.folders import cache_folder
from shardload.shards.contents import Contents
from shardload.shards.entry import Entry, PackedKey, victims
from shardload.shards.hold import Hold, held_ids
from shardload.shards.objects import Found, Objects

logger = logging.getLogger("shardload.shards")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DEFAULT_RESERVE_BYTES = 2**30
COUNTED_PARTS = 64
"""Files are counted again after this part of the limit was written."""
Progress = Callable[[int, int], None]
"""Bytes that are done, and of how many."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What became of looking at every byte."""

    checked: tuple[Entry, ...]
    damaged: tuple[Entry, ...]
    """Removed: they are packed again when they are needed."""
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed, and what stayed because running processes use it."""

    removed: tuple[Entry, ...]
    freed_bytes: int
    held: tuple[Entry, ...]
    refused: tuple[Entry, ...] = ()
    """What the disk, or the rights of this user, would not let go."""


class _Look(NamedTuple):
    """What a look at all bytes of an entry came to; neither found nor damaged: it went away meanwhile."""

    found: Found | None
    damaged: bool


class Store:
    """A directory of packed tensors, each stored once, whichever models have it.

    Holds nothing open. Any thread and any number of processes may use one directory. What cannot be read is
    not there; only `write` tells of a disk that refuses. ``limit_bytes`` is kept by removing other builds'
    entries and then the longest unused; ``reserve_bytes`` of the disk are left to others.
    """

    def __init__(
        self, directory: Path, limit_bytes: int | None = None, *, reserve_bytes: int = DEFAULT_RESERVE_BYTES
    ) -> None:
        self.directory, self.limit_bytes, self.reserve_bytes = directory, limit_bytes, reserve_bytes
        self.contents = Contents(directory / "contents")
        self._objects = Objects(directory / "packed")
        self._holds = directory / "holds"
        # Bytes that may be written before all files are counted again.
        self._uncounted_bytes = 0
        # What was looked at and could not be noted, on a disk that cannot be written.
        self._looked_at: dict[str, str] = {}
        if left := self._sweep():
            logger.info("removed %d files that were never finished from %s", left, directory)

    def find(self, key: PackedKey) -> Entry | None:
        """The entry if it is there and whole; takes a stat and the reading of a small file.

        An entry whose file is not the one that was written (changed, copied, restored) is read through: it
        counts if its bytes are right, and is removed with a warning if not.
        """
        try:
            found = self._objects.read(key.id, key)
            if found is not None and not self._fits(found):
                found = self._look_at(found).found
        except OSError as error:
            logger.info("the entry %s of the store %s cannot be read: %s", key.id, self.directory, error)
            return None
        return found.entry() if found is not None else None

    def write(self, key: PackedKey, data: memoryview) -> Entry:
        """Keep a tensor's packed bytes; they are on the disk, and their pages clean, when it returns.

        Reads ``data`` and keeps nothing of it. An entry that is there already is not written again. Raises
        StoreFull and StoreUnavailable.
        """
        data = data.cast("B")
        try:
            if (there := self.find(key)) is not None:
                self.touch([there])
                return there
            self._make_room(len(data), key.build)
            return self._objects.write(key, data).entry()
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in NO_ROOM:
                raise StoreFull(self.directory, reason) from error
            raise StoreUnavailable(self.directory, reason) from error

    def hold(self, entries: Iterable[Entry] = ()) -> Hold:
        """Keep entries from being pruned while this process maps them; the caller closes it."""
        hold = Hold(self._holds)
        hold.add(entry.id for entry in entries)
        return hold

    def touch(self, entries: Iterable[Entry]) -> None:
        """Note that entries are used now; on a disk that cannot be written nothing is noted."""
        for entry in entries:
            try:
                self._objects.touch(entry.id)
            except OSError as error:
                logger.debug("the use of %s is not noted: %s", entry.id, error)

    def remove(self, entries: Iterable[Entry]) -> None:
        """Take entries out, in use or not; what cannot be removed stays."""
        for entry in entries:
            self._remove(entry)

    def entries(self) -> list[Entry]:
        """All that can be read, the last used first; their bytes are not looked at."""
        known = [found.entry() for found in self._all() if isinstance(found, Found)]
        return sorted(known, key=lambda entry: (-entry.last_used, entry.id))

    def users(self) -> Mapping[str, tuple[Path, ...]]:
        """Which model files have the weights of which entry (by its id), as far as they were looked at."""
        holders = self.contents.holders()
        return {entry.id: holders.get(entry.key.digest, ()) for entry in self.entries()}

    def used_bytes(self) -> int:
        """Bytes on the disk."""
        return self._objects.used_bytes()

    def verify(
        self, progress: Progress | None = None, should_stop: Callable[[], bool] | None = None
    ) -> VerifyReport:
        """Look at every byte of every entry, and remove those that are not what was written."""
        checked: list[Entry] = []
        damaged: list[Entry] = []
        unreadable = done = 0
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                progress(done, total)

        for entry in entries:
            if should_stop is not None and should_stop():
                break
            try:
                found = self._objects.read(entry.id)
                if found is None:
                    continue
                look = self._look_at(found, count, should_stop)
            except OSError:
                unreadable += 1
                continue
            if look.damaged:
                damaged.append(entry)
            elif look.found is not None and look.found is not found:
                checked.append(entry)
        return VerifyReport(tuple(checked), tuple(damaged), unreadable)

    def prune(
        self, limit_bytes: int | None = None, *, keep_build: str | None = None, keep_unused: bool = True
    ) -> PruneReport:
        """Remove the longest unused until ``limit_bytes`` are left, and all entries but ``keep_build``'s.

        Without ``keep_unused`` also those that no known model file has. Entries that running processes hold
        stay, since their room would not be free before those let go. Removes what is damaged, and what is
        known of model files that are gone, as well.
        """
        self._sweep()
        self.contents.forget_gone()
        entries, held = self._known(), held_ids(self._holds)
        holders = self.contents.holders()
        chosen: list[Entry] = []
        others: list[Entry] = []
        for entry in entries:
            is_kept = keep_build in (None, entry.key.build) and (keep_unused or entry.key.digest in holders)
            (others if is_kept else chosen).append(entry)
        if limit_bytes is not None:
            excess = sum(entry.nbytes for entry in others) - limit_bytes
            leaving = victims(others, held, excess, keep_build or "")
            chosen += others if leaving is None else leaving
        kept = tuple(entry for entry in chosen if entry.id in held)
        return self._removed([entry for entry in chosen if entry.id not in held], kept)

    def clear(self) -> PruneReport:
        """Remove everything, in use or not; mapped files live on until they are unmapped."""
        report = self._removed(self._known())
        self.contents.clear()
        self._sweep()
        return report

    def check_readable(self) -> None:
        """Raise StoreUnavailable for a directory that is there and is kept from this user."""
        for directory in (self.directory, self._objects.directory):
            try:
                os.scandir(directory).close()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise StoreUnavailable(self.directory, error.strerror or str(error)) from error

    def _sweep(self) -> int:
        return self._objects.sweep() + self.contents.sweep()

    def _removed(self, entries: Iterable[Entry], held: tuple[Entry, ...] = ()) -> PruneReport:
        removed: list[Entry] = []
        refused: list[Entry] = []
        for entry in entries:
            (removed if self._remove(entry) else refused).append(entry)
        return PruneReport(tuple(removed), sum(entry.nbytes for entry in removed), held, tuple(refused))

    def _fits(self, found: Found) -> bool:
        return found.record.fits(found.identity) or (
            self._looked_at.get(found.path.name) == found.identity.lasting
        )

    def _look_at(
        self,
        found: Found,
        progress: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> _Look:
        """Read an entry through; if it is damaged, remove it."""
        try:
            whole = self._objects.checked(found, progress, should_stop)
        except FileNotFoundError:
            return _Look(None, damaged=False)
        except EOFError:
            whole = None
        if whole is not None:
            if whole is not found:
                self._looked_at[found.path.name] = whole.identity.lasting
            return _Look(whole, damaged=False)
        try:
            if not self._objects.remove(found.path.name, found.identity):
                # Another process removed it, or wrote it anew.
                now = self._objects.read(found.path.name)
                return _Look(now if now is not None and self._fits(now) else None, damaged=False)
        except OSError as error:
            logger.debug("the entry %s cannot be removed: %s", found.path.name, error)
        logger.warning("%s was damaged, it is packed again when it is needed", found.path)
        return _Look(None, damaged=True)

    def _all(self) -> Iterator[Found | str]:
        """What is known of each entry, or the id of one whose record is damaged."""
        for entry_id in self._objects.ids():
            try:
                yield self._objects.read(entry_id) or entry_id
            except OSError as error:
                logger.debug("the entry %s cannot be read: %s", entry_id, error)

    def _known(self) -> list[Entry]:
        """All entries; damaged records are removed by the way."""
        entries: list[Entry] = []
        for found in self._all():
            if isinstance(found, Found):
                entries.append(found.entry())
            else:
                self._remove_id(found)
        return entries

    def _make_room(self, nbytes: int, build: str) -> None:
        self._check_disk(nbytes)
        if self.limit_bytes is None:
            return
        self._uncounted_bytes -= nbytes
        if self._uncounted_bytes >= 0:
            return
        excess = self._objects.used_bytes() + nbytes - self.limit_bytes
        # Others write as well, so that it is only a part of the room.
        self._uncounted_bytes = min(-excess, self.limit_bytes // COUNTED_PARTS)
        if excess <= 0:
            return
        leaving = victims(self._known(), held_ids(self._holds), excess, build)
        if leaving is None:
            limit, wanted = format_bytes(self.limit_bytes), format_bytes(nbytes)
            raise StoreFull(self.directory, f"no room for {wanted} below the limit of {limit}")
        for entry in leaving:
            self._remove(entry)

    def _check_disk(self, nbytes: int) -> None:
        if not hasattr(os, "statvfs"):
            return
        place = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        disk = os.statvfs(place)
        free = disk.f_bavail * disk.f_frsize
        if free < nbytes + self.reserve_bytes:
            wanted, left, reserve = (format_bytes(size) for size in (nbytes, free, self.reserve_bytes))
            reason = f"the disk has {left} left, and {reserve} stay free for others"
            raise StoreFull(self.directory, f"no room for {wanted}: {reason}")

    def _remove(self, entry: Entry) -> bool:
        return self._remove_id(entry.id)

    def _remove_id(self, entry_id: str) -> bool:
        try:
            return self._objects.remove(entry_id)
        except OSError as error:
            logger.info("the entry %s cannot be removed: %s", entry_id, error)
            return False


def default_directory() -> Path:
    """Where the store is if nobody says otherwise."""
    return cache_folder() / "store"
