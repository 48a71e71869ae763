from __future__ import annotations

from pathlib import Path

import pytest

from shardload.config import StoreConfig
from shardload.errors import ConfigError
from shardload_server.cli.settings import configuration, open_store, size_of, store_config

BASE = StoreConfig(directory="/from/file", limit=5)


def test_nothing_said_leaves_the_configuration() -> None:
    assert store_config(None, BASE) is BASE
    assert store_config("", BASE) is BASE


def test_off() -> None:
    off = StoreConfig(directory="/from/file", limit=5, enabled=False)
    assert store_config("off", BASE) == off
    with pytest.raises(ConfigError, match="no store"):
        open_store(off)


def test_a_directory_wins_over_the_file(tmp_path: Path) -> None:
    off = StoreConfig(enabled=False, limit=5)
    assert store_config(str(tmp_path), off) == StoreConfig(directory=str(tmp_path), limit=5)
    store = open_store(store_config(str(tmp_path / "new"), off))
    assert (store.directory, store.limit_bytes) == (tmp_path / "new", 5)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no directory"):
        store_config(str(tmp_path / "file"), BASE)


def test_the_default_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = open_store(configuration(None, None).store)
    assert (store.directory, store.limit_bytes) == (tmp_path / "shardload" / "store", StoreConfig().limit)


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "shardload.toml"
    file.write_text('store = {directory = "kept", limit = "5KiB"}\nengine.threads = 3\n')
    config = configuration(file, None)
    assert config.store == StoreConfig(directory=str(tmp_path / "kept"), limit=5120)
    assert config.engine.threads == 3
    assert configuration(file, "off").store.enabled is False


def test_sizes() -> None:
    assert size_of("--budget", None) is None
    assert size_of("--budget", "2KiB") == 2048
    with pytest.raises(ConfigError, match="--budget: 'much' is not a size"):
        size_of("--budget", "much")
