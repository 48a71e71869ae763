from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish
from typer.testing import Result

from shardload_server.cli.compare import summary, without_experts
from shardload_server.cli.sharing import FileShare, ShardShare, Sharing

Invoke = Callable[..., Result]


def write_model(path: Path, last: float) -> Path:
    """Two blocks of which the second one holds ``last`` everywhere."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), np.float32))
    for block, value in enumerate((1.0, last)):
        writer.add_tensor(f"blk.{block}.attn_q.weight", np.full((64, 64), value, np.float32))
    finish(writer)
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("SHARDLOAD_STORE", str(tmp_path / "store"))
    return [write_model(tmp_path / f"{name}.gguf", at) for at, name in enumerate(("one", "two"), 2)]


def test_json_tells_what_is_shared(invoke: Invoke, models: list[Path]) -> None:
    found = json.loads(invoke("inspect", *models, "--json").stdout)
    block, embeddings = 64 * 64 * 4, 4 * 64 * 4
    assert found["apart_bytes"] == 2 * (2 * block + embeddings)
    assert found["together_bytes"] == 3 * block + embeddings
    assert [file["own_bytes"] for file in found["files"]] == [block, block]
    shared = {shard["name"]: shard["shared_bytes"] for shard in found["shards"]}
    assert shared == {"block 0": 2 * block, "block 1": 0, "embeddings": 2 * embeddings}


def test_tables(invoke: Invoke, models: list[Path]) -> None:
    result = invoke("inspect", *models)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert max(map(len, lines)) <= 80
    assert "2 models of 66.0 KiB take 49.0 KiB together: 1.48 times the largest" in lines
    assert any(
        line.split() == ["block", "1", "2", "of", "2", "32.0", "KiB", "32.0", "KiB", "0", "%"]
        for line in lines
    )


def test_what_was_read_is_remembered(
    invoke: Invoke, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = invoke("inspect", *models, "--json").stdout

    def unread(*_: object) -> None:
        raise AssertionError("it was read again")

    monkeypatch.setattr("shardload_server.cli.compare.compute", unread)
    monkeypatch.setattr("shardload.shards.contents.compute", unread)
    assert invoke("inspect", *models, "--json").stdout == first


def test_without_a_store_nothing_is_kept(invoke: Invoke, models: list[Path], tmp_path: Path) -> None:
    assert invoke("inspect", *models, "--store", "off").exit_code == 0
    assert not (tmp_path / "store").exists()


def test_files_of_one_name_are_told_apart(invoke: Invoke, models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write_model(tmp_path / "other" / "one.gguf", 2)
    found = json.loads(invoke("inspect", models[0], twin, "--json").stdout)
    assert [file["name"] for file in found["files"]] == [str(models[0]), str(twin)]
    assert found["together_bytes"] * 2 == found["apart_bytes"]


@pytest.mark.parametrize("option", ["--tensors", "--metadata", "--ctx=5"])
def test_options_for_one_file(invoke: Invoke, models: list[Path], option: str) -> None:
    result = invoke("inspect", *models, option)
    assert result.exit_code == 2
    assert "are for one file" in result.stderr


def test_one_that_is_no_model(invoke: Invoke, models: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    result = invoke("inspect", models[0], broken)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_experts_of_a_block_are_one_line() -> None:
    shards = [ShardShare("block 0", 2, 4, 2, 4)]
    shards += [ShardShare(f"block 0 expert {at}", 2, 10, 5 + at, 10 - at) for at in range(3)]
    assert without_experts(shards) == [shards[0], ShardShare("block 0 experts", 2, 30, 18, 27)]


def test_summary_of_nothing() -> None:
    empty = Sharing((FileShare("a", "a", 0, 0, 0),), (), 0, 0)
    assert summary(empty).startswith("1 model of 0 B")
