from __future__ import annotations

import errno

import pytest

from shardload.memory import trim_heap
from shardload_native import libc


def test_trim() -> None:
    assert trim_heap() in (True, False)


def test_other_c_libraries_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(libc, "malloc_trim", missing)
    assert trim_heap() is False


def test_a_library_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "_libc", lambda: (None, object()))
    with pytest.raises(OSError, match="cannot trim"):
        libc.malloc_trim()
