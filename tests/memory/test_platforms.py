"""Each platform's module is imported everywhere; its decisions are made on replaced system calls."""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardload.memory import PAGE_BYTES, darwin, linux, other
from shardload.memory.platform import current
from shardload_native import libc


@pytest.mark.parametrize(
    ("name", "module"), [("linux", linux), ("darwin", darwin), ("win32", other), ("cygwin", other)]
)
def test_selection(monkeypatch: pytest.MonkeyPatch, name: str, module: Any) -> None:
    monkeypatch.setattr(sys, "platform", name)
    assert current() is module


def failing(code: int, times: int = 10**9) -> Any:
    """A call that fails with that error so many times."""
    left = [times]

    def call(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, os.strerror(code))

    return call


def test_linux_without_pageout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "madvise", failing(errno.EINVAL))
    assert not linux.page_out(0, PAGE_BYTES)
    monkeypatch.setattr(libc, "madvise", failing(errno.ENOMEM))
    with pytest.raises(OSError, match="memory"):
        linux.page_out(0, PAGE_BYTES)


def test_linux_leaves_locked_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "madvise", failing(errno.EINVAL))
    linux.discard(0, PAGE_BYTES)
    monkeypatch.setattr(libc, "madvise", failing(errno.ENOMEM))
    with pytest.raises(OSError, match="memory"):
        linux.discard(0, PAGE_BYTES)


def test_linux_populates_by_hand_where_the_kernel_cannot(
    mapped_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "madvise", failing(errno.EINVAL))
    linux.populate_read(mapped_file.address, mapped_file.length)
    monkeypatch.setattr(libc, "madvise", failing(errno.EAGAIN, times=3))
    linux.populate_read(mapped_file.address, mapped_file.length)
    monkeypatch.setattr(libc, "madvise", failing(errno.EFAULT))
    with pytest.raises(OSError, match="address"):
        linux.populate_read(mapped_file.address, mapped_file.length)


@pytest.mark.parametrize(
    ("large_page", "release", "advice", "reading"),
    [
        ("2097152\n", "6.8.0-45-generic", [linux.MADV_HUGEPAGE, linux.MADV_RANDOM], linux.MADV_RANDOM),
        ("2097152\n", "5.15.0", [linux.MADV_HUGEPAGE], linux.MADV_NORMAL),
        ("33554432\n", "6.8.0", [], linux.MADV_NORMAL),
        ("536870912\n", "6.8.0", [], linux.MADV_NORMAL),
        ("", "6.8.0", [], linux.MADV_NORMAL),
        (None, "6.8.0", [], linux.MADV_NORMAL),
    ],
)
def test_linux_asks_for_large_pages_that_are_small_enough(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_page: str | None,
    release: str,
    advice: list[int],
    reading: int,
) -> None:
    path = tmp_path / "hpage_pmd_size"
    if large_page is not None:
        path.write_text(large_page)
    given: list[int] = []
    monkeypatch.setattr(linux, "LARGE_PAGE_FILE", path)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(libc, "madvise", lambda address, length, what: given.append(what))
    for answer in (linux._has_large_pages, linux._reads_whole_large_pages):
        monkeypatch.setattr(linux, answer.__name__, functools.cache(answer.__wrapped__))
    linux.prefer_large_pages(0, PAGE_BYTES)
    assert given == advice
    linux.read_ahead(0, PAGE_BYTES, True)
    assert given[-1] == reading


@pytest.mark.parametrize(("before", "after"), [(0, 10), (-5, 10), (10, 10), (15, 15)])
def test_linux_makes_no_thread_more_urgent(monkeypatch: pytest.MonkeyPatch, before: int, after: int) -> None:
    niceness = [before]
    monkeypatch.setattr(os, "getpriority", lambda which, who: niceness[-1])
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: niceness.append(value))
    linux.yield_to_others()
    assert niceness[-1] == after


def test_linux_goes_on_where_urgency_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    monkeypatch.setattr(os, "setpriority", failing(errno.EPERM))
    linux.yield_to_others()


def mincore(address: int, length: int, vector: bytearray) -> None:
    """Every page is in memory, and other bits say other things."""
    vector[:] = b"\3" * (length // PAGE_BYTES)


def test_linux_without_cachestat(mapped_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "cached_pages", failing(errno.ENOSYS))
    monkeypatch.setattr(libc, "mincore", mincore)
    monkeypatch.setattr(linux, "may_send_away", lambda descriptor: True)
    with mapped_file.path.open("rb") as file:
        assert linux.cached_bytes(file.fileno(), 0, mapped_file.length) == mapped_file.length
        assert linux.cached_bytes(file.fileno(), 5 * PAGE_BYTES + 7, 100) == 100
        monkeypatch.setattr(linux, "may_send_away", lambda descriptor: False)
        assert linux.cached_bytes(file.fileno(), 0, mapped_file.length) is None
        monkeypatch.setattr(libc, "cached_pages", failing(errno.EBADF))
        with pytest.raises(OSError, match="descriptor"):
            linux.cached_bytes(file.fileno(), 0, mapped_file.length)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux asks who it is")
@pytest.mark.parametrize("nbytes", [0, 1, PAGE_BYTES, 3 * PAGE_BYTES + 5])
def test_linux_tells_of_the_pages_of_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * nbytes)
    with path.open("rb") as file:
        assert linux.may_send_away(file.fileno())
        monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
        assert linux.may_send_away(file.fileno())
        monkeypatch.setattr(libc, "mincore", mincore)  # as it is for a file of somebody else
        assert not linux.may_send_away(file.fileno())


def test_darwin_with_its_calls_replaced(mapped_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setattr(libc, "mincore", mincore)
    monkeypatch.setattr(libc, "msync", lambda address, length, flags: calls.append(("msync", length, flags)))
    monkeypatch.setattr(
        libc, "madvise", lambda address, length, flags: calls.append(("madvise", length, flags))
    )
    pages = darwin.residency(mapped_file.address, 3)
    assert pages is not None
    assert pages.tolist() == [True] * 3
    with mapped_file.path.open("rb") as file:
        assert darwin.cached_bytes(file.fileno(), PAGE_BYTES, 10) == 10
        assert darwin.drop_cache(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        assert darwin.may_send_away(file.fileno())
    assert darwin.page_out(mapped_file.address, PAGE_BYTES)
    darwin.populate_read(mapped_file.address, 2 * PAGE_BYTES)
    assert calls == [
        ("msync", mapped_file.length, 2),
        ("msync", PAGE_BYTES, 2),
        ("madvise", 2 * PAGE_BYTES, 3),
    ]


def test_other_systems_say_what_they_cannot(mapped_file: Any) -> None:
    assert other.residency(mapped_file.address, 2) is None
    assert other.cached_bytes(0, 0, 1) is None
    assert not other.may_send_away(0)
    assert not other.page_out(mapped_file.address, PAGE_BYTES)
    assert not other.drop_cache(0, 0, 1)
    other.populate_read(mapped_file.address, mapped_file.length)


@pytest.mark.parametrize("module", [darwin, other])
def test_process_memory_without_proc(module: Any) -> None:
    memory = module.process_memory()
    assert 0 < memory.anonymous_bytes <= memory.resident_bytes
    assert memory.anonymous_bytes + memory.file_bytes == memory.resident_bytes


def test_libc_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        def cdef(self, declarations: str) -> None: ...

        def dlopen(self, name: str | None) -> Any:
            raise OSError("dlopen(None) cannot work on Windows")

    monkeypatch.setattr("cffi.FFI", Foreign)
    libc.calls.cache_clear()
    try:
        with pytest.raises(OSError, match="no C library") as caught:
            libc.madvise(0, PAGE_BYTES, 0)
        assert caught.value.errno == errno.ENOSYS
    finally:
        libc.calls.cache_clear()
