from __future__ import annotations

from pathlib import Path

import pytest

from shardload.shards.entry import Entry, PackedKey
from shardload_server.cli.stored import ago, summarise

STORE = Path("/store")


def entry(name: str, nbytes: int, *, used: float = 0.0, build: str = "here") -> Entry:
    key = PackedKey(name, "q4_K", (256, 8), "CPU_REPACK", build)
    return Entry(name, STORE / name, nbytes, used, used, key)


def test_models_and_what_they_share() -> None:
    entries = [entry("a", 10, used=5.0), entry("b", 20, used=9.0), entry("c", 30), entry("d", 40)]
    users = {"a": ["/m/one.gguf"], "b": ["/m/one.gguf", "/m/two.gguf"], "c": ["/m/two.gguf"]}
    found = summarise(STORE, 1000, entries, users, "here")
    assert (found.bytes, found.count, found.unused_bytes, found.other_builds_bytes) == (100, 4, 40, 0)
    one, two = found.models
    assert (one.name, one.bytes, one.shared_bytes, one.shared_with) == ("one", 30, 20, ("two",))
    assert (two.name, two.entries, two.bytes, two.last_used) == ("two", 2, 50, 9.0)
    assert found.entries is None


def test_the_last_used_comes_first() -> None:
    entries = [entry("a", 1, used=1.0), entry("b", 1, used=2.0)]
    found = summarise(STORE, None, entries, {"a": ["/old.gguf"], "b": ["/new.gguf"]}, "here")
    assert [model.name for model in found.models] == ["new", "old"]


def test_other_builds_are_counted() -> None:
    entries = [entry("a", 1), entry("b", 2, build="there")]
    assert summarise(STORE, None, entries, {}, "here").other_builds_bytes == 2
    assert summarise(STORE, None, entries, {}, None).other_builds_bytes == 0


def test_every_entry() -> None:
    (line,) = summarise(STORE, None, [entry("a", 1)], {"a": ["/m/x.gguf"]}, None, every_entry=True).entries
    assert (line.shape, line.type, line.models) == ((8, 256), "q4_K", ("x",))


def test_an_empty_store() -> None:
    found = summarise(STORE, None, [], {}, None)
    assert (found.bytes, found.count, found.models) == (0, 0, ())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "just now"),
        (120, "2 min ago"),
        (3600, "1 h ago"),
        (86400, "24 h ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 300, "10 months ago"),
    ],
)
def test_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words
