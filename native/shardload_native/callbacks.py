"""What Python functions raise that C code calls: it cannot pass it on, so that waits until it has returned.

cffi prints such an exception, and has the function return a value that stands for an error. Ctrl-C is mostly
one of these: Python sees to it when the next of its functions begins, which is one that C code calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("shardload.llama")


class _Waiting(threading.local):
    raised: list[BaseException] | None = None


_waiting = _Waiting()


@contextmanager
def raised_in_callbacks() -> Iterator[list[BaseException]]:
    """A list that gets what is raised in functions that C code calls on this thread during the block.

    Whoever calls the C code cannot rely on its result then, and raises the first one.
    """
    outer, _waiting.raised = _waiting.raised, []
    try:
        yield _waiting.raised
    finally:
        _waiting.raised = outer


def keep(_kind: object, error: BaseException, _trace: object) -> None:
    """What cffi calls with an exception, as ``onerror`` of a callback."""
    if _waiting.raised is not None:
        _waiting.raised.append(error)
    else:
        logger.error("a function that llama.cpp called failed", exc_info=error)
