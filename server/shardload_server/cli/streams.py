"""The standard streams of the process, as the shell or another program gave them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

BROKEN_PIPE = 141
"""The exit code that shells give to what SIGPIPE ended; Python ignores the signal, for its sockets' sake."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """For the time of the block no stream is missing and none fails on a letter.

    What can no longer be written at its end is dropped; if that is because the reader left, the process
    ends with ``BROKEN_PIPE``.
    """
    _open_missing()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    written = (sys.stdout, sys.stderr)
    try:
        yield
    finally:
        finished = [_finished(stream) for stream in written]
        if not all(finished):
            sys.exit(BROKEN_PIPE)


def _open_missing() -> None:
    """Open what the caller has closed, in the order of the numbers, before other files take those."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (for good)


def _finished(stream: TextIO) -> bool:
    """Write out a stream; False if its reader has left."""
    try:
        stream.flush()
    except OSError as error:
        # Python would try once more at its end, and complain.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return not isinstance(error, BrokenPipeError)
    return True
