from __future__ import annotations

from pathlib import Path

import pytest

from shardload.config import StoreConfig
from shardload.errors import ConfigError
from shardload_server.cli.location import open_store, store_config, store_directory

BASE = StoreConfig(directory="/from/file", limit=5)


def test_nothing_said_leaves_the_configuration() -> None:
    assert store_config(None, BASE) is BASE
    assert store_config("", BASE) is BASE


def test_off() -> None:
    assert store_config("off", BASE) == StoreConfig(directory="/from/file", limit=5, enabled=False)
    assert store_directory("off") is None
    with pytest.raises(ConfigError, match="no store"):
        open_store("off")


def test_a_directory_wins_over_the_file(tmp_path: Path) -> None:
    off = StoreConfig(enabled=False, limit=5)
    assert store_config(str(tmp_path), off) == StoreConfig(directory=str(tmp_path), limit=5)
    assert store_directory(str(tmp_path / "new")) == tmp_path / "new"
    assert open_store(str(tmp_path)).limit_bytes == StoreConfig().limit


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no directory"):
        store_config(str(tmp_path / "file"), BASE)


def test_the_default_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store_directory(None) == tmp_path / "shardload" / "store"
