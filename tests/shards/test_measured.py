from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shardload.shards.layouts import LayoutTable, Speeds
from shardload.shards.measured import MOST_TABLES, keep_table, read_table

TABLE = LayoutTable({"Q4_K": Speeds({1: 2.0}, {1: 3.0})})


def test_is_remembered_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "layouts.json"
    assert read_table(path, "a").speeds == {}
    assert keep_table(path, "a", TABLE)
    assert keep_table(path, "b", LayoutTable({}))
    assert read_table(path, "a").speeds == TABLE.speeds
    assert read_table(path, "b").speeds == {}


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "layouts.json"
    for number in range(MOST_TABLES + 2):
        keep_table(path, str(number), TABLE)
    keep_table(path, "2", TABLE)
    keep_table(path, "new", TABLE)
    assert read_table(path, "1").speeds == read_table(path, "3").speeds == {}
    assert read_table(path, "2").speeds == read_table(path, "4").speeds == TABLE.speeds


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "layouts.json"
    path.write_bytes(b"\xff{")
    assert read_table(path, "a").speeds == {}
    assert keep_table(path, "a", TABLE)
    assert read_table(path, "a").speeds == TABLE.speeds


def test_what_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.INFO, "shardload.shards"):
        assert not keep_table(tmp_path / "file" / "layouts.json", "a", TABLE)
    assert "not remembered" in caplog.text
    assert read_table(tmp_path / "file" / "layouts.json", "a").speeds == {}
