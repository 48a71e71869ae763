from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import Result

from shardload_server.cli.inspect import bar, format_count, value_line
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = invoke("inspect", path, "--tensors", "--metadata")
    assert result.exit_code == 0
    assert not set(result.stdout) & {"\x1b", "\x9b"}
    assert "a\ufffd[2Jb\ufffdc" in result.stdout
    assert json.loads(invoke("inspect", path, "--json").stdout)["name"] == "a\x1b[2Jb\x9bc"


def test_long_values_are_cut() -> None:
    assert value_line("x" * 300) == "x" * 200 + "... (300 characters)"
    assert value_line("a\nb") == "a\\nb"
    assert value_line({"type": "int32", "count": 9, "first": [1, 2]}) == "9 x int32: 1, 2, ..."
