from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from shardload.memory import PAGE_BYTES, file_resident_bytes, mapped, mapped_files
from shardload.memory.mapped import MappedFile, MappedFiles

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such mappings")


def content(file: MappedFile) -> bytes:
    return ctypes.string_at(file.address, file.length)


def mappings_of(path: Path) -> int:
    """How often a file is mapped, as the system has it."""
    return sum(line.rstrip().endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def files() -> MappedFiles:
    return MappedFiles()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3 * PAGE_BYTES + 100))
    return path


def test_a_file_is_mapped_once(files: MappedFiles, path: Path) -> None:
    first = files.open(path)
    with path.open("rb") as opened:
        second = files.open(opened.fileno())
    assert second is first
    assert content(first) == path.read_bytes()
    assert mappings_of(path) == 1
    first.release()
    assert content(second) == path.read_bytes()
    second.release()
    assert mappings_of(path) == 0


def test_other_names_of_a_file_are_the_same_file(files: MappedFiles, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.hardlink_to(path)
    with_link = files.open(link)
    assert files.open(path) is with_link
    for _ in range(2):
        with_link.release()


def test_no_descriptor_stays_open(files: MappedFiles, path: Path) -> None:
    before = psutil.Process().num_fds()
    file = files.open(path)
    assert psutil.Process().num_fds() == before
    file.release()
    assert psutil.Process().num_fds() == before


def test_a_deleted_file_stays_as_long_as_it_is_mapped(files: MappedFiles, path: Path) -> None:
    data = path.read_bytes()
    file = files.open(path)
    path.unlink()
    path.write_bytes(bytes(len(data)))
    other = files.open(path)
    assert other is not file
    assert content(file) == data
    assert content(other) == bytes(len(data))
    for one in (file, other):
        one.release()


def test_a_file_that_has_grown_is_mapped_anew(files: MappedFiles, path: Path) -> None:
    short = files.open(path)
    with path.open("ab") as opened:
        opened.write(b"more")
    long = files.open(path)
    assert (long.length, content(long)[-4:]) == (short.length + 4, b"more")
    for one in (long, short):
        one.release()


def test_a_mapping_is_lazy(files: MappedFiles, disk_path: Path) -> None:
    path = disk_path / "weights"
    with path.open("wb") as opened:
        opened.write(os.urandom(4 * 2**20))
        opened.flush()
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = file_resident_bytes(path)
    file = files.open(path)
    assert file_resident_bytes(path) == before
    file.release()


def test_what_cannot_be_mapped(files: MappedFiles, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        files.open(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        files.open(tmp_path / "absent")


def test_threads_share_and_leave_in_any_order(files: MappedFiles, path: Path) -> None:
    data = path.read_bytes()

    def use(_: int) -> bool:
        file = files.open(path)
        try:
            return content(file) == data
        finally:
            file.release()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(400)))
    assert mappings_of(path) == 0
    assert not files._files


def test_there_is_one_set_in_the_process() -> None:
    assert mapped_files() is mapped_files()


def test_a_file_knows_whether_its_pages_may_be_sent_away(
    files: MappedFiles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for allowed in (True, False):
        monkeypatch.setattr(mapped.current(), "may_send_away", lambda descriptor, allowed=allowed: allowed)
        file = files.open(path)
        assert file.gives_pages == allowed
        file.release()


def test_files_are_found_by_their_addresses(files: MappedFiles, path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    both = [files.open(path), files.open(tmp_path / "other")]
    assert files.at(min(file.address for file in both) - 1) is None
    for file in both:
        assert files.at(file.address) is files.at(file.address + file.length - 1) is file
        assert files.at(file.address + file.length) is None  # within its last page
        file.release()
        assert files.at(file.address) is None
