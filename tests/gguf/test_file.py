from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import finish

import shardload
from shardload.errors import GGUFError, HandleClosed, NotGGUF
from shardload.gguf import GGUFFile, MetadataArray, block_name
from shardload.memory import PAGE_BYTES, drop_file_cache, file_resident_bytes

DEMO_MODELS = sorted(Path(shardload.__file__).parent.glob("demo/**/*.gguf"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of the gguf package's own writing, with every type of value."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_block_count(2)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["<s>", "é", "", "▁a" * 200])
    writer.add_token_scores([0.0, -1.5, 2.0, 3.0])
    writer.add_token_types([1, 2, 3, 4])
    writer.add_chat_template(
        [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "b"}]
    )
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"x.{kind}", 100)
    writer.add_float32("x.float32", 0.1)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_array("x.flags", [True, False])
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    for index in range(2):
        writer.add_tensor(
            f"blk.{index}.attn_q.weight",
            np.zeros((2, 34), np.uint8),
            raw_dtype=gguf.GGMLQuantizationType.Q8_0,
        )
        writer.add_tensor(f"blk.{index}.norm.weight", np.ones(8, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    finish(writer)
    return path


def assert_same_as_reader(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    with GGUFFile(path) as file:
        assert list(file.metadata) == list(fields)
        for name, field in fields.items():
            value = file.metadata[name]
            assert file.metadata_types[name] == field.types[0]
            if isinstance(value, MetadataArray):
                assert len(value) == len(field.data)
                assert value.tolist() == field.contents()
                if len(value):
                    assert value.element_type == field.types[1]
            else:
                assert value == field.contents()
                assert type(value) is type(field.contents())
        assert file.alignment == reader.alignment
        assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
        for theirs in reader.tensors:
            ours = file.tensors[theirs.name]
            assert (ours.type.code, ours.offset, ours.nbytes) == (
                theirs.tensor_type,
                theirs.data_offset,
                theirs.n_bytes,
            )
            assert list(ours.ne) == theirs.shape.tolist()
            np.testing.assert_array_equal(file.tensor(theirs.name), theirs.data)


def test_same_as_the_reader_of_the_package(model: Path) -> None:
    assert_same_as_reader(model)


def test_demo_models_same_as_the_reader_of_the_package() -> None:
    assert len(DEMO_MODELS) >= 3
    for path in DEMO_MODELS:
        assert_same_as_reader(path)


def test_facts(model: Path) -> None:
    with GGUFFile.open(str(model)) as file:
        assert (file.path, file.paths) == (model, (model,))
        assert file.size_bytes == model.stat().st_size
        assert (file.architecture, file.name, file.version) == ("llama", "Tiny", 3)
        assert (file.context_length, file.embedding_length, file.block_count) == (128, 8, 2)
        assert file.vocabulary_size == 4
        assert file.chat_template() == "{{ a }}"
        assert file.chat_template("tool_use") == "b"
        assert file.chat_template("none") is None
        assert file.file_type == "Q8_0"
        assert file.parameter_count == 32 + 2 * (2 * 32 + 8) + 8
        assert file.quantization == {"F32": 128 + 64 + 32, "Q8_0": 136}
        assert list(file.quantization) == ["F32", "Q8_0"]
        assert file.block_bytes() == {"token_embd": 128, "blk.0": 100, "blk.1": 100, "output_norm": 32}
        assert repr(file) == f"<GGUFFile {str(model)!r}>"
        with pytest.raises(KeyError):
            file.tensor("missing")


def test_facts_that_a_file_does_not_state(write: Callable[..., Path], fuzzer: ModuleType) -> None:
    path = write([fuzzer.key("general.file_type", 8, fuzzer.text("many"))], name="bare.gguf")
    with GGUFFile(path) as file:
        assert file.architecture is None
        assert file.name == "bare"
        assert (file.context_length, file.vocabulary_size, file.chat_template(), file.file_type) == (
            None,
        ) * 4
        assert (file.parameter_count, file.quantization, file.block_bytes()) == (0, {}, {})


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blk.0.attn_q.weight", "blk.0"),
        ("blk.11.ffn_up_exps.weight", "blk.11"),
        ("enc.blk.3.attn_q.weight", "enc.blk.3"),
        ("output.weight", "output"),
        ("rope_freqs", "rope_freqs"),
        ("blk.x.y", "blk"),
    ],
)
def test_block_names(name: str, block: str) -> None:
    assert block_name(name) == block


def test_close_is_final_and_idempotent(model: Path) -> None:
    file = GGUFFile(model)
    view = file.tensor("token_embd.weight")
    assert not file.closed
    file.close()
    file.close()
    assert file.closed
    assert np.all(view == 1.0)
    assert file.name == "Tiny"
    with pytest.raises(HandleClosed, match=r"model\.gguf.* is closed"):
        file.tensor("token_embd.weight")


def test_unclosed_file_warns(model: Path) -> None:
    file: Any = GGUFFile(model)
    with pytest.warns(ResourceWarning, match="unclosed <GGUFFile"):
        del file


@pytest.mark.parametrize("where", [".", "missing.gguf", "model.gguf/below.gguf", "nul\0.gguf", "x" * 5000])
def test_paths_that_are_no_files(model: Path, where: str) -> None:
    with pytest.raises(NotGGUF):
        GGUFFile(model.parent / where)


def test_reasons_of_paths(tmp_path: Path) -> None:
    with pytest.raises(NotGGUF, match="is a directory"):
        GGUFFile(tmp_path)
    with pytest.raises(NotGGUF, match="no such file") as caught:
        GGUFFile(tmp_path / "none.gguf")
    assert isinstance(caught.value, FileNotFoundError)


def test_devices_are_no_files() -> None:
    with pytest.raises(NotGGUF):
        GGUFFile(os.devnull)


def test_file_without_read_permission(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may read everything
    with pytest.raises(NotGGUF, match="no permission to read it") as caught:
        GGUFFile(model)
    assert isinstance(caught.value, PermissionError)


def test_file_replaced_or_deleted_while_open(model: Path, tmp_path: Path) -> None:
    with GGUFFile(model) as file:
        before = {name: file.tensor(name).copy() for name in file.tensors}
        other = tmp_path / "other"
        other.write_bytes(b"something else")
        other.replace(model)
        assert all(np.array_equal(file.tensor(name), before[name]) for name in before)
        model.unlink()
        assert all(np.array_equal(file.tensor(name), before[name]) for name in before)
        assert list(file.metadata["tokenizer.ggml.tokens"])[0] == "<s>"  # type: ignore[arg-type]  # noqa: RUF015
        with pytest.raises(NotGGUF):
            GGUFFile(model)


def test_failed_open_leaves_nothing_open(fuzzer: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(fuzzer.SEEDS[0][:-200])
    descriptor = os.open(path, os.O_RDONLY)
    os.close(descriptor)
    for _ in range(3):
        with pytest.raises(GGUFError):
            GGUFFile(path)
    again = os.open(path, os.O_RDONLY)
    os.close(again)
    assert again == descriptor


def test_open_reads_the_header_of_a_sparse_file_and_nothing_else(fuzzer: ModuleType, disk_path: Path) -> None:
    size, words = 10 * 2**30, 128_000
    keys = [
        fuzzer.key("general.architecture", 8, fuzzer.text("llama")),
        fuzzer.key(
            "tokenizer.ggml.tokens",
            9,
            fuzzer.array(8, words, b"".join(fuzzer.text(f"t{n}") for n in range(words))),
        ),
        fuzzer.key("tokenizer.ggml.token_type", 9, fuzzer.array(5, words, b"\1\0\0\0" * words)),
    ]
    tensors = [fuzzer.tensor(f"blk.{n}.weight", (2**20, 79), 0, n * 79 * 2**22) for n in range(32)]
    path = disk_path / "sparse.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    with path.open("wb") as sparse:
        sparse.write(head)
        sparse.truncate(size)
        os.fsync(sparse.fileno())
    drop_file_cache(path)

    with GGUFFile(path) as file:
        assert file.vocabulary_size == words
        assert file.header_bytes == (len(head),)
        assert len(file.tensors) == 32
        data = -(-len(head) // PAGE_BYTES) * PAGE_BYTES
        # None where the system does not tell what is in memory.
        assert file_resident_bytes(path, data) in (0, None)
        assert file.tensor("blk.31.weight")[3, 5] == 0.0
        assert file_resident_bytes(path, data) != 0
