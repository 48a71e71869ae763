"""Where tensors are to be had packed, or from another file: the store and the index of contents together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from weakref import WeakSet

from shardload.gguf import GGUFFile
from shardload.shards.contents import FilePlace
from shardload.shards.entry import Entry, PackedKey
from shardload.shards.hold import Hold
from shardload.shards.identity import FileIdentity
from shardload.shards.store import Store
from shardload_native.build import packing_build

__all__ = ["Pantry", "Shelf", "packing_build"]

logger = logging.getLogger("shardload.shards")

LEAST_LENT_BYTES = 64 * 2**10
"""Sharing less spares no memory that counts, and would tie a model to another one's file."""


class Pantry:
    """A store for one build of llama.cpp on one CPU; any thread.

    What a model maps is kept in the store by a hold of that model, which ends when its weights are freed.
    """

    def __init__(self, store: Store, build: str) -> None:
        self.store, self.contents, self.build = store, store.contents, build
        self._holds: WeakSet[Hold] = WeakSet()

    def close(self) -> None:
        """End all holds, also those of models that nobody closed; idempotent."""
        for hold in list(self._holds):
            hold.close()

    def hold(self) -> Hold:
        """Holds nothing yet; for what one model maps, whose owner closes it."""
        hold = self.store.hold()
        self._holds.add(hold)
        return hold

    def shelf(self, paths: Sequence[Path]) -> Shelf:
        """What there is for one model, given by its parts; nothing for a file that is not known yet."""
        identities = _identities(paths)
        return Shelf(self, self._digests(identities), identities)

    def known(self, paths: Sequence[Path]) -> frozenset[str]:
        """The digests of one model's tensors; takes a stat and the reading of a small file for each part."""
        return frozenset(self._digests(_identities(paths)).values())

    def _digests(self, identities: Sequence[FileIdentity]) -> dict[str, str]:
        found: dict[str, str] = {}
        for identity in identities:
            found |= self.contents.digests(identity) or {}
        return found

    def key(self, digest: str, type_name: str, ne: tuple[int, ...], buffer_type: str) -> PackedKey:
        """The key of a packed tensor."""
        return PackedKey(digest, type_name, ne, buffer_type, self.build)

    def digests_of(
        self,
        file: GGUFFile,
        progress: Callable[[int, int], None] | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> Mapping[str, str] | None:
        """The digest of each tensor of a file, which is read through unless they are remembered.

        None if stopped, or if the file changes meanwhile.
        """
        known = self.contents.known(file)
        return known if known is not None else self.contents.remember(file, progress, stops)

    def stored(self, key: PackedKey, data: memoryview, hold: Hold) -> Entry:
        """The entry of a packed tensor, which is written if it is not there; it is held from now on.

        Raises StoreFull and StoreUnavailable.
        """
        entry = self.store.write(key, data)
        hold.add([entry.id])
        return entry

    def distrust(self, entries: Sequence[Entry]) -> None:
        """Remove entries whose bytes are not what llama.cpp packs."""
        self.store.remove(entries)


class Shelf:
    """Where the tensors of one model can be had, stored or lent; asked on the thread that loads it."""

    def __init__(self, pantry: Pantry, digests: dict[str, str], identities: Sequence[FileIdentity]) -> None:
        self._pantry, self._digests, self._identities = pantry, digests, identities
        self._lenders = pantry.contents.lenders(frozenset(digests.values()))
        self._found: list[Entry] = []

    def describes(self, identity: FileIdentity) -> bool:
        """Whether a file is one of those that were looked up."""
        return any(identity.same(own) for own in self._identities)

    def digest(self, tensor: str) -> str | None:
        """What a tensor contains; None where that is not known."""
        return self._digests.get(tensor)

    def packed(self, tensor: str, type_name: str, ne: tuple[int, ...], buffer_type: str) -> FilePlace | None:
        """Where its packed bytes are stored; None where they are not."""
        digest = self._digests.get(tensor)
        if digest is None:
            return None
        entry = self._pantry.store.find(self._pantry.key(digest, type_name, ne, buffer_type))
        if entry is None:
            return None
        self._found.append(entry)
        return FilePlace(entry.path, 0, entry.nbytes)

    def lent(self, tensor: str) -> FilePlace | None:
        """Where the longest known file has the same bytes, to share them; None where that is this one."""
        lender = self._lenders.get(self._digests.get(tensor, ""))
        if lender is None or lender.identity is None or self.describes(lender.identity):
            return None
        return lender if lender.nbytes >= LEAST_LENT_BYTES else None

    def lends(self, tensor: str) -> bool:
        """Whether this is the longest known file that has the bytes of a tensor, for others to share them."""
        lender = self._lenders.get(self._digests.get(tensor, ""))
        if lender is None or lender.identity is None or not self.describes(lender.identity):
            return False
        return lender.nbytes >= LEAST_LENT_BYTES

    def loaded(self) -> Hold:
        """The load is over: what was found is in use, until the hold is closed."""
        hold = self._pantry.hold()
        hold.add(entry.id for entry in self._found)
        self._pantry.store.touch(self._found)
        return hold

    def distrust(self) -> None:
        """Remove what was found: it is not what llama.cpp packs."""
        self._pantry.distrust(self._found)
        self._found.clear()


def _identities(paths: Sequence[Path]) -> list[FileIdentity]:
    """Of all parts of a model; none where one is gone."""
    try:
        return [FileIdentity.of(path) for path in paths]
    except OSError as error:
        logger.debug("%s is not looked up: %s", paths[0], error)
        return []
