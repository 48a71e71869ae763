from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish
from typer.testing import Result

from shardload.errors import LoadFailed, StoreFull
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
            failure, self.failure = self.failure, None
            raise failure
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


@pytest.fixture
def unusable(tmp_path: Path) -> list[Path]:
    """Files that no server would serve: garbage, an adapter, a vocabulary, and none at all."""
    paths = [tmp_path / name for name in ("garbage.gguf", "adapter.gguf", "vocabulary.gguf", "none.gguf")]
    paths[0].write_bytes(b"garbage")
    adapter = gguf.GGUFWriter(paths[1], "llama")
    adapter.add_type("adapter")
    adapter.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 64), np.float32))
    finish(adapter)
    vocabulary = gguf.GGUFWriter(paths[2], "llama")
    vocabulary.add_token_list(["<unk>", "a"])
    finish(vocabulary)
    return paths


def test_what_is_no_model_keeps_no_other_from_being_packed(
    invoke: Invoke, fake: FakePack, model_file: Path, unusable: list[Path], tmp_path: Path
) -> None:
    result = invoke("pack", *unusable, model_file, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert fake.asked == [(("small.gguf",), tmp_path / "store")]
    assert result.stdout.startswith("small.gguf: packed 1.0 MiB")
    reasons = [
        "is no GGUF file",
        "holds 'adapter', which is no model",
        "is a vocabulary only",
        "no such file",
    ]
    for path, reason, told in zip(unusable, reasons, result.stderr.splitlines(), strict=True):
        assert told.startswith(f"{path}: ")
        assert reason in told


def test_one_that_fails_keeps_no_other_from_being_packed(
    invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    shutil.copy(model_file, other)
    fake.failure = LoadFailed(str(model_file), "llama.cpp wants\nno such model")
    result = invoke("pack", model_file, other, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert result.stderr == f"{model_file}: llama.cpp wants no such model\n"
    assert result.stdout == "other.gguf: is packed already (2.0 MiB)\n"


def test_json_has_what_failed_too(
    invoke: Invoke, fake: FakePack, model_file: Path, unusable: list[Path], tmp_path: Path
) -> None:
    result = invoke("pack", model_file, *unusable, "--store", tmp_path, "--json")
    assert result.exit_code == 1
    good, *bad = json.loads(result.stdout)
    assert (good["path"], good["error"]) == (str(model_file), None)
    assert [found["path"] for found in bad] == [str(path) for path in unusable]
    assert all(found["error"] and not found["written_bytes"] for found in bad)


def test_a_full_store_is_one_line(invoke: Invoke, fake: FakePack, model_file: Path, tmp_path: Path) -> None:
    fake.failure = StoreFull(tmp_path, "the disk has 3 B left")
    result = invoke("pack", model_file, "--store", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"{model_file}: the store {tmp_path}: the disk has 3 B left\n"


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
