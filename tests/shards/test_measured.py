from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shardload.shards.layouts import Speeds
from shardload.shards.measured import MOST_TABLES, add_speeds, read_table

SPEEDS = {"Q4_K": Speeds({1: 2.0}, {1: 3.0})}


def test_is_remembered_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "layouts.json"
    assert read_table(path, "a").speeds == {}
    other = {"Q4_0": Speeds({1: 4.0}, {1: 5.0})}
    assert add_speeds(path, "a", SPEEDS).speeds == SPEEDS
    assert add_speeds(path, "b", {}).speeds == {}
    assert read_table(path, "a").speeds == SPEEDS
    assert read_table(path, "b").speeds == {}
    assert add_speeds(path, "a", other).speeds == read_table(path, "a").speeds == {**SPEEDS, **other}


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "layouts.json"
    for number in range(MOST_TABLES + 2):
        add_speeds(path, str(number), SPEEDS)
    add_speeds(path, "2", SPEEDS)
    add_speeds(path, "new", SPEEDS)
    assert read_table(path, "1").speeds == read_table(path, "3").speeds == {}
    assert read_table(path, "2").speeds == read_table(path, "4").speeds == SPEEDS


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".layouts-1.part").write_bytes(b"half")
    add_speeds(tmp_path / "layouts.json", "a", SPEEDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layouts.json", "layouts.lock"]


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "layouts.json"
    path.write_bytes(b"\xff{")
    assert read_table(path, "a").speeds == {}
    add_speeds(path, "a", SPEEDS)
    assert read_table(path, "a").speeds == SPEEDS


def test_what_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.INFO, "shardload.shards"):
        assert add_speeds(tmp_path / "file" / "layouts.json", "a", SPEEDS).speeds == SPEEDS
    assert "not remembered" in caplog.text
    assert read_table(tmp_path / "file" / "layouts.json", "a").speeds == {}
