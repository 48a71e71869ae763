"""Turns the bytes of tokens into text that may be sent: whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Assembles one sequence's text; the result does not depend on how the bytes are cut into pieces.

    Bytes that are no UTF-8 become U+FFFD, a character that is not complete yet is held back, and so is text
    that may become a stop string. The first stop string to be complete ends the text before it.
    """

    __slots__ = ("_decoder", "_first_characters", "_held", "_longest_tail", "_stops", "stop_string")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._longest_tail = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self.stop_string: str | None = None

    def feed(self, piece: bytes) -> str:
        """The text that may be sent after these bytes; none once a stop string is complete."""
        text = self._decoder.decode(piece)
        return self._screen(text) if self._stops and text else text

    def finish(self) -> str:
        """What was held back, at the end of the sequence."""
        if self.stop_string is not None:
            return ""
        tail = self._decoder.decode(b"", True)
        text = self._screen(tail) if self._stops and tail else tail
        held, self._held = self._held, ""
        return text + held

    def _screen(self, text: str) -> str:
        if self.stop_string is not None:
            return ""
        text = self._held + text
        found = self._first_complete(text)
        if found is not None:
            start, self.stop_string = found
            self._held = ""
            return text[:start]
        kept = len(text) - self._held_length(text)
        self._held = text[kept:]
        return text[:kept]

    def _first_complete(self, text: str) -> tuple[int, str] | None:
        """The stop string that is complete first (of several that end together, the longest)."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _held_length(self, text: str) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        for start in range(max(0, len(text) - self._longest_tail), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return len(tail)
        return 0
