"""Calls that need more stack than a thread usually has."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_starting = threading.Lock()


def call_with_stack(function: Callable[[], Result], stack_bytes: int) -> Result:
    """Run a function on a thread of its own with that much stack; memory is used as far as it gets."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="shardload-deep")
    # The size is a setting of the process for the threads started next.
    with _starting:
        # Some systems refuse a part of a page.
        usual = threading.stack_size(-(-stack_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
