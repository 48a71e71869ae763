from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import Result

from shardload.errors import StoreFull
from shardload.shards.store import Store
from shardload_server.cli import pack as command
from shardload_server.cli.pack import Packed, PackedBytes, line
from shardload_server.cli.progress import Report

Invoke = Callable[..., Result]


class FakePack:
    """Packs nothing and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], Path]] = []
        self.failure: Exception | None = None

    def __call__(
        self, paths: Sequence[Path], store: Store, report: Report, stops: Callable[[], bool]
    ) -> PackedBytes:
        self.asked.append((tuple(path.name for path in paths), store.directory))
        report(1, 2)
        report(1, 2, "packing")
        if self.failure is not None:
            raise self.failure
        return PackedBytes(2**20 if len(self.asked) == 1 else 0, 2**21)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePack:
    made = FakePack()
    monkeypatch.setattr(command, "pack_model", made)
    return made


def test_files_are_packed_in_turn(invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    shutil.copy(model_file, other)
    result = invoke("pack", model_file, other, model_file, "--store", tmp_path / "store")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("small.gguf: packed 1.0 MiB in ")
    assert first.endswith("; 2.0 MiB were there")
    assert second == "other.gguf: is packed already (2.0 MiB)"
    assert result.stderr == ""
    assert fake.asked == [(("small.gguf",), tmp_path / "store"), (("other.gguf",), tmp_path / "store")]


def test_json(invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path) -> None:
    (found,) = json.loads(invoke("pack", model_file, "--store", tmp_path, "--json").stdout)
    assert (found["written_bytes"], found["there_before_bytes"]) == (2**20, 2**21)
    assert found["path"] == str(model_file)


def test_nothing_is_packed_where_one_is_no_model(
    invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    result = invoke("pack", model_file, tmp_path / "broken.gguf", "--store", tmp_path)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert fake.asked == []


def test_a_full_store_is_one_line(invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path) -> None:
    fake.failure = StoreFull(tmp_path, "the disk has 3 B left")
    result = invoke("pack", model_file, "--store", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"the store {tmp_path}: the disk has 3 B left\n"


def test_off_is_no_store(invoke: Invoke, fake: FakePack, model_file: Path) -> None:
    assert invoke("pack", model_file, "--store", "off").exit_code == 1
    assert fake.asked == []


def test_what_has_no_packed_order_is_told() -> None:
    assert line(Packed("/m/x.gguf", 0, 0, 0.1)).startswith("x.gguf: nothing to pack")


def test_an_interrupt_stops_the_packing(
    invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C arrives on the main thread, the thread that packs is told to stop, and waited for."""
    packing, ended = threading.Event(), threading.Event()

    def pack(_paths: object, _store: object, _report: object, stops: Callable[[], bool]) -> PackedBytes:
        packing.set()
        while not stops():
            os.sched_yield()
        ended.set()
        return PackedBytes(0, 0)

    def interrupted(*_: object) -> None:
        assert packing.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "pack_model", pack)
    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    assert invoke("pack", model_file, "--store", tmp_path).exit_code == 130
    assert ended.is_set()
