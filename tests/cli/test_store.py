from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from shardload.shards.contents import Content
from shardload.shards.entry import PackedKey
from shardload.shards.identity import FileIdentity
from shardload.shards.objects import Objects
from shardload.shards.store import Store
from shardload_server.cli import store as command
from shardload_server.cli.stored import Stored

Invoke = Callable[..., Result]
ENTRY_BYTES = 4096


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two tensors of this build and one of another, which a model file has."""
    monkeypatch.setenv("SHARDLOAD_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(command, "_build", lambda: "here")
    made = Store(tmp_path / "store", reserve_bytes=0)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    contents = {name: Content(name * 64, 0, 7) for name in "abc"}
    assert made.contents.record(FileIdentity.of(model), model, contents)
    for name, build in (("a", "here"), ("b", "here"), ("c", "there")):
        key = PackedKey(name * 64, "Q4_K", (64, 64), "CPU_REPACK", build)
        made.write(key, memoryview(name.encode() * ENTRY_BYTES))
    return made


def test_list(invoke: Invoke, store: Store) -> None:
    result = invoke("store", "list", "--entries")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "12.0 KiB of 20.0 GiB in 3 tensors" in text
    assert "4.0 KiB are of another llama.cpp or processor" in text
    assert "64 x 64 4.0 KiB just now" in text
    assert max(map(len, result.stdout.splitlines()[1:])) <= 80


def test_list_as_json(invoke: Invoke, store: Store) -> None:
    found = json.loads(invoke("store", "list", "--json").stdout)
    assert (found["bytes"], found["count"], found["other_builds_bytes"]) == (12288, 3, 4096)
    assert found["directory"] == str(store.directory)
    assert found["entries"] is None


def test_a_configuration_says_which_store_and_how_large(
    invoke: Invoke, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHARDLOAD_STORE")
    file = tmp_path / "shardload.toml"
    file.write_text('store = {directory = "store", limit = "16KiB"}')
    result = invoke("store", "list", "--config", file)
    assert "12.0 KiB of 16.0 KiB in 3 tensors" in " ".join(result.stdout.split())


@pytest.mark.parametrize("verb", ["list", "verify", "prune", "clear"])
def test_a_store_that_is_not_there_is_empty_and_said_to_be_missing(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(command, "_build", lambda: None)
    result = invoke("store", verb, "--store", tmp_path / "none")
    assert result.exit_code == 0
    assert "0 tensors" in " ".join(result.stdout.split())
    assert f"there is no store in {tmp_path / 'none'} yet" in " ".join(result.stderr.split())
    assert not (tmp_path / "none").exists()


def test_verify(invoke: Invoke, store: Store) -> None:
    result = invoke("store", "verify")
    assert result.exit_code == 0
    assert result.stdout == "3 tensors whole, 12.0 KiB\n"


def test_verify_finds_a_flipped_byte(invoke: Invoke, store: Store) -> None:
    path = store.entries()[0].path
    path.write_bytes(b"x" + path.read_bytes()[1:])
    result = invoke("store", "verify")
    assert result.exit_code == 1
    assert "2 tensors whole" in result.stdout
    assert "1 damaged" in result.stderr
    assert invoke("store", "verify").exit_code == 0


def test_verify_as_json(invoke: Invoke, store: Store) -> None:
    found = json.loads(invoke("store", "verify", "--json").stdout)
    assert found == {"directory": str(store.directory), "whole": 3, "damaged": [], "unreadable": 0}


def test_prune_removes_what_this_build_cannot_use(invoke: Invoke, store: Store) -> None:
    assert invoke("store", "prune").stdout == "removed 1 tensor, 4.0 KiB\n"
    assert {entry.key.build for entry in store.entries()} == {"here"}


def test_prune_removes_what_the_list_calls_waste(invoke: Invoke, store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").unlink()
    told = " ".join(invoke("store", "list").stdout.split())
    assert "12.0 KiB are of model files that are gone or were replaced: `shardload store prune`" in told
    assert invoke("store", "prune").stdout == "removed 3 tensors, 12.0 KiB\n"
    assert "model files" not in invoke("store", "list").stdout


def test_prune_to_a_limit(invoke: Invoke, store: Store) -> None:
    found = json.loads(invoke("store", "prune", "--limit", "4KiB", "--json").stdout)
    assert (found["entries"], found["bytes"], found["held_entries"]) == (2, 8192, 0)
    assert len(store.entries()) == 1


def test_what_is_in_use_stays(invoke: Invoke, store: Store) -> None:
    with store.hold([entry for entry in store.entries() if entry.key.build == "there"]):
        result = invoke("store", "prune")
    assert "removed 0 tensors" in result.stdout
    assert "left 1 tensor, 4.0 KiB: in use by a running process" in " ".join(result.stdout.split())


def test_a_limit_that_is_none(invoke: Invoke, store: Store) -> None:
    result = invoke("store", "prune", "--limit", "little")
    assert result.exit_code == 1
    assert result.stderr.startswith("--limit: 'little' is not a size")


def test_clear(invoke: Invoke, store: Store) -> None:
    assert invoke("store", "clear").stdout == "removed 3 tensors, 12.0 KiB\n"
    assert store.entries() == []


@pytest.mark.parametrize("verb", ["prune", "clear"])
def test_what_cannot_be_removed_is_told(
    invoke: Invoke, store: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Objects, "remove", refuse)
    result = invoke("store", verb, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["entries"] == 0
    assert f"cannot be removed from {store.directory}" in result.stderr


@pytest.mark.parametrize("verb", ["list", "verify", "prune", "clear"])
def test_a_store_that_cannot_be_read_is_not_empty(
    invoke: Invoke, store: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    result = invoke("store", verb)
    assert result.exit_code == 1
    assert result.stderr == f"the store {store.directory}: Permission denied\n"


@pytest.mark.parametrize("verb", ["list", "verify", "prune", "clear"])
def test_off_is_no_store(invoke: Invoke, verb: str) -> None:
    result = invoke("store", verb, "--store", "off")
    assert result.exit_code == 1
    assert "there is no store" in result.stderr


def test_remarks_are_about_what_is_there() -> None:
    full = Stored("/store", None, 10, 2, (), 3, 4)
    assert len(command.remarks(full)) == 2
    assert command.remarks(Stored("/store", None, 10, 2, (), 0, 0)) == []
    assert command.headline(full) == "/store: 10 B in 2 tensors"


@pytest.mark.parametrize(
    ("shape", "text"),
    [((1, 1, 64, 32), "64 x 32"), ((8, 64, 1), "8 x 64 x 1"), ((1, 1), "1"), ((64,), "64")],
)
def test_shapes_begin_with_what_is_more_than_one(shape: tuple[int, ...], text: str) -> None:
    assert command.shape_line(shape) == text
