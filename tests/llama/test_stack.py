from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

import pytest

from shardload.llama.stack import call_with_stack


def test_the_size_is_for_one_thread_only() -> None:
    usual = threading.stack_size()
    assert call_with_stack(lambda: threading.current_thread().name, 2**24) == "shardload-deep"
    assert threading.stack_size() == usual


def test_a_stack_is_of_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def strict(size: int = 0, real: Callable[[int], int] = threading.stack_size) -> int:
        if size % mmap.PAGESIZE:  # as macOS does it
            raise ValueError(f"size not valid: {size} bytes")
        sizes.append(size)
        return real(size)

    monkeypatch.setattr(threading, "stack_size", strict)
    assert call_with_stack(lambda: 5, 2**20 + 1) == 5
    assert call_with_stack(lambda: 6, 2**20) == 6
    assert sizes[::2] == [2**20 + mmap.PAGESIZE, 2**20]


def test_errors_come_back() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call_with_stack(fail, 2**20)
