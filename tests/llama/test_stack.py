from __future__ import annotations

import threading

import pytest

from shardload.llama.stack import call_with_stack


def test_the_size_is_for_one_thread_only() -> None:
    usual = threading.stack_size()
    assert call_with_stack(lambda: threading.current_thread().name, 2**24) == "shardload-deep"
    assert threading.stack_size() == usual


def test_errors_come_back() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call_with_stack(fail, 2**20)
