from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shardload.memory import file_resident_bytes
from tools.bench import pages
from tools.bench.cgroups import Limit, limited
from tools.bench.figures import Setting
from tools.bench.models import Models
from tools.bench.processes import NotMeasurable
from tools.make_model import Size

SMALL = Size(dim=256, layers=1, heads=4, kv_heads=2, ff=256, vocabulary=600)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages"
    path.write_bytes(os.urandom(3 * 2**20 + 5))
    return path


def test_pages_leave_and_come_back(file: Path) -> None:
    size_bytes = file.stat().st_size
    pages.drop([file])
    assert pages.resident([file]) == 0
    pages.bring([file])
    assert pages.resident([file]) >= size_bytes


def test_pages_that_stay_are_no_measurement(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "DROP_ALL", file.with_name("nowhere"))
    monkeypatch.setattr("os.posix_fadvise", lambda *_: None)
    pages.bring([file])
    with pytest.raises(NotMeasurable, match="pages stay in memory"):
        pages.drop([file])


def test_a_direct_read_leaves_nothing_in_memory(file: Path) -> None:
    pages.drop([file])
    assert pages.direct_seconds(file) > 0
    assert file_resident_bytes(file) == 0


def test_a_system_that_does_not_tell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "file_resident_bytes", lambda _path: None)
    with pytest.raises(NotMeasurable, match="does not tell"):
        pages.resident([file])


def test_without_a_group_the_command_stays_and_the_table_says_so() -> None:
    limit = Limit(1000, None)
    assert limit.command(["a", "b"]) == ["a", "b"]
    assert "the budget alone limits" in limit.note


def test_a_process_in_a_group_is_limited_and_the_group_is_removed() -> None:
    with limited(64 * 2**20) as limit:
        command = limit.command(["sh", "-c", "cat /proc/self/cgroup"])
        inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if limit.folder is None:
            assert command[0] == "sh"
        else:
            assert limit.folder.name in inside
            assert limit.note == ""
    assert limit.folder is None or not limit.folder.exists()


def test_models_are_made_once(tmp_path: Path) -> None:
    models = Models(tmp_path, "m", SMALL, SMALL)
    base = models.plain("Q4_K")
    made = base.stat().st_mtime_ns
    assert models.plain("Q4_K").stat().st_mtime_ns == made
    assert base.name == "m-q4_k-a.gguf"
    tunes = models.tuned("Q4_K", 2, change=0.2)
    assert [path.name for path in tunes] == ["m-q4_k-a-tuned-0.gguf", "m-q4_k-a-tuned-1.gguf"]
    assert {path.stat().st_size // 1000 for path in tunes} == {base.stat().st_size // 1000}
    hollow = models.hollow(2)
    assert len({path.stat().st_size for path in hollow}) == 1
    setting = Setting(1, 1, 1, models, tmp_path)
    assert setting.only("a", kind="Q4_K") == {"a": base}
    assert models.plain("Q4_K", "b").read_bytes() != base.read_bytes()


def test_no_room_for_fine_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.processes.SPARE_BYTES", 2**80)
    models = Models(tmp_path, "m", SMALL, SMALL)
    with pytest.raises(NotMeasurable, match="no room"):
        models.tuned("Q4_K", 1, change=0.2)
