from __future__ import annotations

import errno

import pytest

from shardload.memory import process_memory, trim_heap
from shardload_native import libc


def test_what_was_freed_goes_back_to_the_system() -> None:
    blocks = [bytes([number % 256]) * 2**16 for number in range(512)]
    del blocks[:-1]  # the last one keeps what is below it from going by itself
    before = process_memory().anonymous_bytes
    if trim_heap():
        assert process_memory().anonymous_bytes < before - 2**24


def test_other_c_libraries_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(libc, "malloc_trim", missing)
    assert trim_heap() is False


def test_a_library_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "calls", lambda: (None, object()))
    with pytest.raises(OSError, match="cannot trim"):
        libc.malloc_trim()
