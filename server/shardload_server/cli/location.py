"""Which packed store the command line means."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shardload.config import StoreConfig
from shardload.errors import ConfigError
from shardload.shards.store import Store, default_directory

OFF = "off"


def store_config(option: str | None, base: StoreConfig) -> StoreConfig:
    """A configuration with ``--store`` over it. Raises ConfigError for what is no directory."""
    if not option:
        return base
    if option == OFF:
        return msgspec.structs.replace(base, enabled=False)
    directory = Path(option).expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--store: {directory} is no directory")
    return msgspec.structs.replace(base, directory=str(directory), enabled=True)


def store_directory(option: str | None) -> Path | None:
    """The directory that ``--store`` means: the default without it, None for ``off``."""
    config = store_config(option, StoreConfig())
    if not config.enabled:
        return None
    return Path(config.directory) if config.directory else default_directory()


def open_store(option: str | None) -> Store:
    """The store that ``--store`` means; raises ConfigError for ``off``."""
    directory = store_directory(option)
    if directory is None:
        raise ConfigError("--store off: there is no store to work on")
    return Store(directory, StoreConfig().limit)
