"""What the names of the catalog stand for at the moment, and which of them are pinned."""

from __future__ import annotations

from collections.abc import Iterable

from shardload.library.catalog import Catalog
from shardload.library.holdings import Instance, ServedKey, served_key


class Names:
    """Looks names up by what they stand for; of the manager's event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pins: set[str] = set()
        self._configured_pins: set[str] = set()
        self._pins_version = 0
        self._version = (-1, -1)
        self._served: set[ServedKey] = set()
        self._pinned: dict[ServedKey, str] = {}
        self.take_configured_pins()

    def pin(self, name: str, pinned: bool) -> None:
        """Pin a name or take its pin away; raises ModelNotFound."""
        name = self._catalog.get(name).name
        (self._pins.add if pinned else self._pins.discard)(name)
        self._pins_version += 1

    def unpin(self, key: ServedKey) -> tuple[str, ...]:
        """Take the pin away from every name that stands for this; returns those that were pinned."""
        entries = self._catalog.entries()
        names = tuple(
            entry.name for entry in entries if entry.name in self._pins and served_key(entry) == key
        )
        self._pins.difference_update(names)
        self._pins_version += 1
        return names

    def take_configured_pins(self) -> None:
        """Follow the pins that have changed in the configuration; others stay as they were set."""
        now = {entry.name for entry in self._catalog.entries() if entry.pin}
        self._pins = (self._pins - (self._configured_pins - now)) | (now - self._configured_pins)
        self._configured_pins = now
        self._pins_version += 1

    def is_pinned(self, name: str) -> bool:
        """Whether a name itself is pinned."""
        return name in self._pins

    def is_served(self, key: ServedKey) -> bool:
        """Whether any name stands for this."""
        self._look_up()
        return key in self._served

    def pin_on(self, key: ServedKey) -> str | None:
        """A pinned name that stands for this."""
        self._look_up()
        return self._pinned.get(key)

    def pinned(self, instances: Iterable[Instance]) -> dict[Instance, str]:
        """Those that are open, or will be, and stay; with the name that pins each."""
        there = (instance for instance in instances if instance.state in ("opening", "open"))
        return {instance: name for instance in there if (name := self.pin_on(instance.key[0])) is not None}

    def _look_up(self) -> None:
        version = (self._catalog.version, self._pins_version)
        if version != self._version:
            self._version = version
            entries = self._catalog.entries()
            self._served = {served_key(entry) for entry in entries}
            self._pinned = {served_key(entry): entry.name for entry in entries if entry.name in self._pins}
