"""Model files that come and go while a catalog is in use; nobody looks before somebody asks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from shardload.errors import ConfigError
from shardload.library.catalog import Catalog
from shardload.library.entry import FileKey, ModelEntry
from shardload.library.scan import survey

REST_SECONDS = 1.0
"""How long a look is good for: whoever asks sooner is told what it found."""
REST_SHARE = 10.0
"""A slow look is good for so many times as long as it took: names that nobody knows are no way to keep a
disk busy."""

logger = logging.getLogger("shardload.library")


class Lookout:
    """Keeps a catalog in step with its folders; of the manager's event loop, the disk on a thread.

    A model that is open keeps its file: `Replacements` moves it to another one, and one whose file is gone
    leaves when it is closed. A file that is no model yet is read again when it has changed.
    """

    def __init__(
        self, catalog: Catalog, is_open: Callable[[ModelEntry], bool], clock: Callable[[], float]
    ) -> None:
        self._catalog, self._is_open, self._clock = catalog, is_open, clock
        self._looking = anyio.Lock()
        self._fresh_until = -math.inf
        # What was on disk when the catalog was last made of it, and which version that made.
        self._seen: tuple[Mapping[Path, FileKey], int] | None = None
        self._lingering: set[str] = set()
        """What is open though its file is gone."""
        self._complaint = ""

    async def look(self, *, at_once: bool = False) -> bool:
        """Take over what has come and gone since the last look, unless that is fresh; whether anything was.

        ``at_once`` looks however fresh that is, and reads again whatever could not be served.
        """
        async with self._looking:
            began = self._clock()
            if began < self._fresh_until and not at_once:
                return False
            complaint, changed = "", False
            try:
                changed = await self._look(always=at_once)
            except ConfigError as error:
                complaint = str(error)
            if complaint and complaint != self._complaint:
                logger.warning("the models stay as they were: %s", complaint)
            self._complaint, ended = complaint, self._clock()
            self._fresh_until = ended + max(REST_SECONDS, REST_SHARE * (ended - began))
            return changed

    async def _look(self, *, always: bool) -> bool:
        version, before = self._catalog.version, self._catalog.entries()
        held = {entry.name: entry for entry in before if entry.base is None and self._is_open(entry)}
        seen = await anyio.to_thread.run_sync(survey, self._catalog.config)
        if (seen, version) == self._seen and self._lingering <= held.keys() and not always:
            return False
        try:
            new = await anyio.to_thread.run_sync(self._catalog.rescanned, held)
        except ConfigError:
            self._seen = seen, version  # it is so until something changes
            raise
        if self._catalog.version != version:
            return False  # a name was given another file meanwhile: the next look begins with that
        self._lingering = {
            name for name, entry in held.items() if not all(path in seen for path in entry.paths)
        }
        self._catalog.adopt(new)
        self._seen = seen, self._catalog.version
        names, now = {entry.name for entry in before}, set(new.names())
        _tell("new models", now - names)
        _tell("models that left with their files", names - now)
        return True


def _tell(what: str, names: set[str]) -> None:
    if names:
        logger.info("%s: %s", what, ", ".join(sorted(names)))
