from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from shardload_native import libc
from shardload_native.callbacks import keep, raised_in_callbacks


def called(function: Callable[[], int]) -> int:
    """What C code gets when it calls a function."""
    ffi: Any = libc.calls()[0]
    return int(ffi.callback("int(void)", function, error=-1, onerror=keep)())


def interrupted() -> int:
    raise KeyboardInterrupt


def test_what_a_callback_raises_is_kept() -> None:
    with raised_in_callbacks() as raised:
        assert called(lambda: 5) == 5
        assert raised == []
        assert called(interrupted) == -1
        assert [type(error) for error in raised] == [KeyboardInterrupt]
        with raised_in_callbacks() as inner:
            assert called(interrupted) == -1
        assert (len(inner), len(raised)) == (1, 1)
        assert called(interrupted) == -1
        assert len(raised) == 2


def test_other_threads_have_their_own(caplog: pytest.LogCaptureFixture) -> None:
    with raised_in_callbacks() as raised:
        other = threading.Thread(target=called, args=(interrupted,))
        other.start()
        other.join()
    assert raised == []
    assert [record.message for record in caplog.records] == ["a function that llama.cpp called failed"]
