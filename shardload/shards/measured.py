"""What was measured of layouts on this machine, remembered in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from shardload.shards.layouts import LayoutTable, Speeds, decode_tables, encode_tables
from shardload.shards.lock import locked
from shardload.shards.part import sweep_parts, write_whole

logger = logging.getLogger("shardload.shards")

MOST_TABLES = 32


def read_table(path: Path, key: str) -> LayoutTable:
    """The table that is remembered under ``key``; an empty one where there is none."""
    try:
        return decode_tables(path.read_bytes()).get(key) or LayoutTable({})
    except OSError:
        return LayoutTable({})


def add_speeds(path: Path, key: str, speeds: Mapping[str, Speeds]) -> LayoutTable:
    """Remember what was measured beside what others did, and forget the tables of longest ago.

    Returns the table under ``key`` from now on, whether or not it can be written.
    """
    table = LayoutTable(speeds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            tables = decode_tables(path.read_bytes()) if path.exists() else {}
            table = tables.pop(key, LayoutTable({})).with_speeds(speeds)
            recent = dict([*tables.items(), (key, table)][-MOST_TABLES:])
            sweep_parts(path.parent)
            write_whole(path, encode_tables(recent))
    except OSError as error:
        logger.info("what was measured is not remembered in %s: %s", path, error)
    return table
