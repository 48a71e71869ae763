"""Answers at a terminal as they come: whole words on each line, and nothing that could steer the terminal."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

from rich.cells import cell_len

from shardload_server.cli.screen import STEERING

TAB_COLUMNS = 8


class Typewriter:
    """Writes one answer piece by piece; where nobody watches, in a pipe or a file, exactly as it is.

    A word is held back until its end is known, so that no line ends inside of it. ``width`` is in columns;
    None asks the terminal, 0 leaves the text alone.
    """

    def __init__(self, out: TextIO, *, width: int | None = None) -> None:
        self._out = out
        self._width = width if width is not None else _columns(out)
        self._column = 0
        self._word = ""
        self._last = ""

    def write(self, piece: str) -> None:
        """Write the next piece of the answer."""
        if self._width:
            for character in piece:
                self._add(character)
        else:
            self._put(piece)
        self._out.flush()

    def end(self, *, new_line: bool = True) -> None:
        """Write what was held back, and end the line unless it has ended."""
        self._end_word()
        if new_line and self._last != "\n":
            self._put("\n")
        self._out.flush()

    def _add(self, character: str) -> None:
        if character == "\n":
            self._end_word()
            self._put("\n")
            self._column = 0
        elif character in " \t":
            self._end_word()
            self._put(character)
            self._column += 1 if character == " " else TAB_COLUMNS - self._column % TAB_COLUMNS
        elif unicodedata.east_asian_width(character) in "WF":
            # Scripts without blanks may break anywhere.
            self._end_word()
            self._word = character
            self._end_word()
        elif character != "\r":
            self._word += character.translate(STEERING)
            if len(self._word) >= self._width:
                self._end_word()

    def _end_word(self) -> None:
        cells = cell_len(self._word)
        if self._column and self._column + cells > self._width:
            self._put("\n")
            self._column = 0
        self._put(self._word)
        self._column += cells
        self._word = ""

    def _put(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._last = text[-1]


def _columns(out: TextIO) -> int:
    return shutil.get_terminal_size().columns if out.isatty() else 0
