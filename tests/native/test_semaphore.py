from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shardload_native import libc
from shardload_native.semaphore import LARGEST_VALUE, Semaphore

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has semaphores with names only")


@linux
def test_counts_what_c_posts() -> None:
    counter = Semaphore()
    post = counter._ffi.cast("int(*)(void *)", counter.post_address)
    address = counter._ffi.cast("void *", counter.address)
    assert [post(address) for _ in range(3)] == [0, 0, 0]
    assert counter.value == 3
    counter.reset()
    assert counter.value == 0
    counter.post()
    assert counter.value == 1


@linux
def test_threads_count_together() -> None:
    counter = Semaphore(5)
    threads = [threading.Thread(target=lambda: [counter.post() for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 4005


@linux
def test_a_full_one_says_so_and_stays() -> None:
    counter = Semaphore(LARGEST_VALUE - 1)
    counter.post()
    with pytest.raises(OSError, match="sem_post") as caught:
        counter.post()
    assert caught.value.errno == errno.EOVERFLOW
    assert counter.value == LARGEST_VALUE
    with pytest.raises(OSError, match="sem_init") as caught:
        counter.reset(LARGEST_VALUE + 1)
    assert caught.value.errno == errno.EINVAL


@pytest.fixture
def _nothing_remembered() -> Iterator[None]:
    libc.calls.cache_clear()
    yield
    libc.calls.cache_clear()


@pytest.mark.usefixtures("_nothing_remembered")
def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        def cdef(self, declarations: str) -> None: ...

        def dlopen(self, name: str | None) -> Any:
            raise OSError("no such library")

    monkeypatch.setattr("cffi.FFI", Foreign)
    with pytest.raises(OSError, match="no C library") as caught:
        Semaphore()
    assert caught.value.errno == errno.ENOSYS
