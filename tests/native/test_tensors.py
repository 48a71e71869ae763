from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from packable import small_model

from shardload.gguf import GGUFFile
from shardload.llama import Model, ModelParams
from shardload_native import hooks, tensors
from shardload_native.library import load
from shardload_native.tensors import TensorAccess, tensor_access

pytestmark = pytest.mark.skipif(
    hooks.hook_verdict().hooks is None or tensor_access() is None, reason="tensors are not seen here"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = small_model(tmp_path_factory.mktemp("models") / "m.gguf", "Q4_0")
    with Model.open([path], ModelParams(use_extra_bufts=True)) as opened:
        yield opened


def test_a_tensor_is_as_the_file_has_it(model: Model) -> None:
    with GGUFFile.open(model.path) as file:
        assert {placed.name for placed in model.tensors} == set(file.tensors)
        for placed in model.tensors:
            info, tensor = file.tensors[placed.name], placed.tensor
            assert tensor.name == placed.name
            assert tensor.type_name.upper() == info.type.name
            assert tensor.nbytes == info.nbytes
            assert tensor.ne == (*info.ne, 1, 1, 1)[:4]


def test_the_buffer_tells_the_order(model: Model) -> None:
    kinds = {placed.name: placed.tensor.buffer_type for placed in model.tensors}
    assert kinds["blk.0.attn_q.weight"] == "CPU_REPACK"
    assert kinds["blk.0.attn_norm.weight"].startswith("CPU")
    assert kinds["blk.0.attn_norm.weight"] != "CPU_REPACK"


def test_a_record_elsewhere_leaves_the_first_one_alone(model: Model) -> None:
    placed = next(placed for placed in model.tensors if placed.packing is not None)
    packing = placed.packing
    assert packing is not None
    before = placed.tensor.words
    packed = ctypes.string_at(packing.private.address, packing.private.length)
    room = ctypes.create_string_buffer(packing.private.length + 64)
    aligned = -(-ctypes.addressof(room) // 64) * 64
    other = placed.tensor.elsewhere(aligned, packing.buffer, packing.extra)
    other.copy_from(placed.file.address, placed.file.length)
    assert ctypes.string_at(aligned, packing.private.length) == packed
    assert other.name == placed.name
    assert other.words == (aligned, packing.buffer, packing.extra)
    assert placed.tensor.words == before
    assert other.copied_bytes == packing.private.length


def test_a_structure_that_is_not_known_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = tensors.tensor_access.__wrapped__
    assert find() is not None
    monkeypatch.setattr(TensorAccess, "fits", lambda _: False)
    assert find() is None
    monkeypatch.undo()
    monkeypatch.setattr(tensors, "headers_match", lambda _: False)
    assert find() is None


def test_a_library_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TensorAccess, _llama: object) -> None:
        raise AttributeError("ggml_get_name")

    assert load() is not None
    monkeypatch.setattr(TensorAccess, "__init__", fail)
    assert tensors.tensor_access.__wrapped__() is None
