from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish
from typer.testing import Result

from shardload.gguf import GGUFFile
from shardload.shards.entry import PackedKey
from shardload.shards.store import Store
from shardload_server.cli.inspect import bar, format_count, halved, value_line
from shardload_server.cli.inspection import Block

Invoke = Callable[..., Result]


def test_facts(invoke: Invoke, model_file: Path) -> None:
    result = invoke("inspect", model_file, "--ctx", "256")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "architecture llama" in text
    assert "context 1024 tokens" in text
    assert "5 tokens, SentencePiece" in text
    assert "blocks 2 of 24.0 KiB, width 64" in text
    # 2 blocks, 2 KV heads of 16, keys and values of 2 bytes
    assert "256 B per token, 64.0 KiB for 256 tokens" in text
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_every_block_has_its_line(invoke: Invoke, model_file: Path) -> None:
    lines = invoke("inspect", model_file).stdout.splitlines()
    names = [line.split()[0] for line in lines if line.endswith("%")]
    assert names == ["token_embd", "blk.0", "blk.1", "output"]


def test_json_adds_up(invoke: Invoke, model_file: Path) -> None:
    found = json.loads(invoke("inspect", model_file, "--json", "--tensors", "--metadata").stdout)
    assert found["architecture"] == "llama"
    assert sum(found["quantization"].values()) == sum(block["bytes"] for block in found["blocks"])
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == sum(
        block["bytes"] for block in found["blocks"]
    )
    assert found["tensors"][1]["shape"] == [64, 64]
    assert found["metadata"]["tokenizer.ggml.tokens"] == {
        "type": "string",
        "count": 5,
        "first": ["<unk>", "<s>", "</s>", "a", "b"],
    }
    assert found["resident_bytes"] == sum(block["resident_bytes"] for block in found["blocks"])


def test_shards_have_their_lines(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    result = invoke("inspect", model_file, "--shards", "--store", tmp_path / "none")
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.endswith("%")]
    assert [" ".join(row[:-6]) for row in rows if row[0] == "block"] == ["block 0", "block 1"]
    assert max(map(len, lines)) <= 80
    assert "shared with" not in result.stdout
    assert "F16" in result.stdout


def test_shards_as_json(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    found = json.loads(invoke("inspect", model_file, "--shards", "--json", "--store", tmp_path).stdout)
    names = ["embeddings", "block 0", "block 1", "output"]
    assert [shard["name"] for shard in found["shards"]] == names
    assert sum(shard["bytes"] for shard in found["shards"]) == sum(b["bytes"] for b in found["blocks"])
    assert found["shards"][1]["types"] == {"F16": 24576}
    assert (found["shards"][1]["shared_with"], found["shards"][1]["packed_bytes"]) == ([], 0)


def test_shards_tell_what_the_store_knows(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(model_file, copy)
    store = Store(tmp_path / "store", reserve_bytes=0)
    with GGUFFile(model_file) as file, GGUFFile(copy) as twin:
        digests = store.contents.remember(file)
        store.contents.remember(twin)
    assert digests is not None
    key = PackedKey(digests["blk.1.attn_q.weight"], "F16", (64, 64), "CPU_REPACK", "here")
    store.write(key, memoryview(bytes(8192)))
    found = json.loads(invoke("inspect", model_file, "--shards", "--json", "--store", store.directory).stdout)
    embeddings, first, second, _ = found["shards"]
    assert embeddings["shared_with"] == first["shared_with"] == ["copy"]
    # Both blocks hold ones alone, so that one packed tensor serves them both.
    assert first["packed_bytes"] == second["packed_bytes"] == 8192
    assert embeddings["packed_bytes"] == 0
    assert second["last_used"] > 0
    text = invoke("inspect", model_file, "--shards", "--store", store.directory).stdout
    assert "copy" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_file_that_was_just_read_is_in_memory(invoke: Invoke, model_file: Path) -> None:
    model_file.read_bytes()
    found = json.loads(invoke("inspect", model_file, "--json").stdout)
    assert all(block["cells"] and min(block["cells"]) == 1.0 for block in found["blocks"])


def test_tensors_and_metadata_are_listed_when_asked_for(invoke: Invoke, model_file: Path) -> None:
    plain, full = invoke("inspect", model_file), invoke("inspect", model_file, "--tensors", "--metadata")
    assert "blk.1.ffn_up.weight" not in plain.stdout
    assert "blk.1.ffn_up.weight" in full.stdout
    assert "tokenizer.ggml.tokens" in full.stdout


@pytest.mark.parametrize("content", [b"", b"GGML", b"GGUF\x03\x00\x00\x00" + b"\xff" * 100])
def test_no_model_is_one_line(invoke: Invoke, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    result = invoke("inspect", path)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(path) in result.stderr


def test_bar_shows_whole_part_and_none() -> None:
    assert bar(Block("blk.0", 1, 3, 2, (1.0, 0.5, 0.0))).plain == "█▒░"


def test_halved_bars_keep_the_whole() -> None:
    assert halved((1.0, 0.0, 0.5)) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (260_000, "260.0 K"), (1_100_000_000, "1.10 B"), (70_600_000_000, "70.6 B")],
)
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text


def test_names_in_a_file_do_not_steer_the_terminal(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "evil.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a\x1b[2Jb\x9bc")
    writer.add_tensor("blk.0.\x1b[7mx", np.ones(4, np.float32))
    finish(writer)
    result = invoke("inspect", path, "--tensors", "--metadata")
    assert result.exit_code == 0
    assert not set(result.stdout) & {"\x1b", "\x9b"}
    assert "a\ufffd[2Jb\ufffdc" in result.stdout
    assert json.loads(invoke("inspect", path, "--json").stdout)["name"] == "a\x1b[2Jb\x9bc"


def test_long_values_are_cut() -> None:
    assert value_line("x" * 300) == "x" * 200 + "... (300 characters)"
    assert value_line("a\nb") == "a\\nb"
    assert value_line({"type": "int32", "count": 9, "first": [1, 2]}) == "9 x int32: 1, 2, ..."
