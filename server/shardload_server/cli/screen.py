"""A console on which names out of files cannot steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

STRANGE = "\N{REPLACEMENT CHARACTER}"
STEERING = {code: STRANGE for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""For `str.translate`: control characters, of both sets, that are no white space."""


PADDING = re.compile(r" +$", re.MULTILINE)


class Screen(Console):
    """Shows control characters as such; a file's metadata and a server's words may hold any.

    Where it is no terminal, no line ends in blanks: those that fill a table's columns are for the eye.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as always, but for the blanks."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        super().print(PADDING.sub("", captured.get()), end="", soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Leave the end to the command, which gives it the exit code that shells know."""
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as always; what the console itself says to the terminal is kept apart by rich."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(segment.text.translate(STEERING), segment.style)
