"""What options that several commands have come to: a configuration, the packed store, a size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from shardload.assembly import store_of
from shardload.config import Config, StoreConfig, load_config
from shardload.errors import ConfigError
from shardload.quantities import parse_bytes
from shardload.shards.store import Store

OFF = "off"


def configuration(file: Path | None, store: str | None) -> Config:
    """The configuration of ``--config``, or the default one, with ``--store`` over it. Raises ConfigError."""
    config = load_config(file) if file else Config()
    return msgspec.structs.replace(config, store=store_config(store, config.store))


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


def open_store(settings: StoreConfig) -> Store:
    """The configured store; raises ConfigError where it is off, StoreUnavailable where it cannot be read."""
    store = store_of(settings)
    if store is None:
        raise ConfigError("packed weights are off: there is no store to work on; name one with --store DIR")
    store.check_readable()
    return store


def size_of(option: str, text: str | None, parse: Callable[[object], int] = parse_bytes) -> int | None:
    """The bytes that an option gives, if it was given. Raises ConfigError."""
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
