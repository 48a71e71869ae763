from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from copied_gguf import copy_model, split_model
from packable import (
    LARGE,
    PACKED,
    PACKED_KINDS,
    PLAIN_KINDS,
    fine_tune,
    learn,
    linux_only,
    open_pantry,
    open_shelved,
    pack_file,
    said_by,
    say,
    small_model,
    smallest,
    stored_bytes,
)

from shardload import memory
from shardload.gguf import GGUFFile
from shardload.llama import Model, ModelParams
from shardload.llama import loading as loading_module
from shardload.llama.loading import Loading
from shardload.llama.packing import pack
from shardload.llama.placed import PlacedTensor
from shardload.memory import Range
from shardload.shards.contents import FilePlace
from shardload.shards.identity import FileIdentity
from shardload.shards.pantry import Pantry
from shardload_native import hooks

pytestmark = [linux_only, pytest.mark.usefixtures("nothing_stays_mapped")]


def test_the_second_open_maps_all_that_the_first_one_packed(path: Path, pantry: Pantry) -> None:
    with open_shelved(path, pantry) as first:
        private_bytes = first.private_tensor_bytes
        assert private_bytes > 0
        pack(first, pantry)
    with open_shelved(path, pantry) as second:
        assert second.private_tensors == []
        assert stored_bytes(second) == private_bytes
        assert second.lazily_mapped


def test_the_second_open_touches_one_small_tensor_only(disk_path: Path) -> None:
    path = small_model(disk_path / "large.gguf", "Q4_0", LARGE)
    with open_pantry(disk_path / "store") as pantry:
        pack_file(path, pantry)
        files = [path, *(disk_path / "store" / "packed").iterdir()]
        for file in files:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            memory.drop_file_cache(file)
        if memory.file_resident_bytes(path) is None:
            return  # nobody tells
        memory.trim_heap()
        before = memory.process_memory().anonymous_bytes
        with open_shelved(path, pantry) as model:
            touched = []
            for placed in model.tensors:
                if placed.packing is not None and (place := placed.packing.stored) is not None:
                    touched += [placed] if memory.resident_bytes(place.address, place.length) else []
            assert touched == [smallest(model)]
            grown = memory.process_memory().anonymous_bytes - before
            assert grown < stored_bytes(model) // 2, "what llama.cpp would pack into is never touched"


def test_what_is_lent_is_at_the_same_address(path: Path, pantry: Pantry, tmp_path: Path) -> None:
    tuned = fine_tune(tmp_path / "tuned.gguf", path)
    expected = said_by(tuned, PACKED)
    for one in (path, tuned):
        pack_file(one, pantry)
    with open_shelved(path, pantry) as model, open_shelved(tuned, pantry) as other:
        places = {placed.name: placed for placed in model.tensors}
        same, different = set(), set()
        for placed in other.tensors:
            if placed.packing is not None:
                like = places[placed.name]
                assert like.packing is not None
                (same if placed.packing.stored == like.packing.stored else different).add(placed.name)
                if placed.file.length >= 2**16:
                    assert (placed.file == like.file) == (placed.name in same)
        assert "blk.0.ffn_up.weight" in same
        assert "blk.0.attn_q.weight" in different
        assert say(other) == expected


def test_what_was_read_ahead_leaves_also_where_another_file_has_it(disk_path: Path) -> None:
    path = small_model(disk_path / "model.gguf", "Q4_0", LARGE)
    tuned = fine_tune(disk_path / "tuned.gguf", path)
    with open_pantry(disk_path / "store") as pantry:
        for one in (path, tuned):
            pack_file(one, pantry)
        with GGUFFile.open(tuned) as file:
            embeddings = file.tensors["token_embd.weight"]
        descriptor = os.open(tuned, os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
        with open_shelved(path, pantry) as model, open_shelved(tuned, pantry) as other:
            places = [
                placed.file
                for one in (model, other)
                for placed in one.tensors
                if placed.name == embeddings.name
            ]
            assert places[0] == places[1], "it is lent"
            tuned.read_bytes()
            other.drop_read_ahead()
            assert not memory.file_resident_bytes(tuned, embeddings.offset + 4096, embeddings.nbytes - 8192)


@pytest.mark.parametrize("first_closed", [0, 1])
def test_models_that_share_are_closed_in_either_order(
    path: Path, pantry: Pantry, tmp_path: Path, first_closed: int
) -> None:
    paths = [path, fine_tune(tmp_path / "tuned.gguf", path)]
    expected = [said_by(one, PACKED) for one in paths]
    for one in paths:
        pack_file(one, pantry)
    models = [open_shelved(one, pantry) for one in paths]
    models[first_closed].close()
    left = 1 - first_closed
    assert say(models[left]) == expected[left]
    models[left].close()


def test_a_plain_tensor_of_another_file_is_used_from_there(pantry: Pantry, tmp_path: Path) -> None:
    base = small_model(tmp_path / "base.gguf", "Q8_0")
    same = fine_tune(tmp_path / "same.gguf", base, change=0)
    for path in (base, same):
        learn(path, pantry)
    with open_shelved(base, pantry) as model, open_shelved(same, pantry) as other:
        places = {placed.name: placed.file for placed in model.tensors}
        shared = [placed.name for placed in other.tensors if placed.file == places[placed.name]]
        assert "blk.0.ffn_up.weight" in shared
        assert "output_norm.weight" not in shared
        assert say(other) == say(model)
    base.unlink()
    with open_shelved(same, pantry) as alone:
        assert alone.private_tensors == []
        assert say(alone) == said_by(same)


def test_tied_embeddings_are_there_in_both_orders(pantry: Pantry, tmp_path: Path) -> None:
    untied = small_model(tmp_path / "untied.gguf", "Q4_0")
    path = copy_model(untied, tmp_path / "tied.gguf", without=["output.weight"])
    expected = said_by(path, PACKED)
    pack_file(path, pantry)
    with open_shelved(path, pantry) as model:
        twice = [placed for placed in model.tensors if placed.name == "token_embd.weight"]
        assert sorted(placed.packing is not None for placed in twice) == [False, True]
        assert model.private_tensors == []
        assert say(model) == expected


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_models_that_nothing_is_packed_of(kind: str, pantry: Pantry, tmp_path: Path) -> None:
    path = small_model(tmp_path / "model.gguf", kind)
    if any(placed.packing is not None for placed in open_and_close(path)):
        return  # this processor packs them as well
    pack_file(path, pantry)
    assert pantry.store.entries() == []
    with open_shelved(path, pantry) as model:
        assert model.lazily_mapped
        assert say(model) == said_by(path)


def open_and_close(path: Path) -> tuple[PlacedTensor, ...]:
    with Model.open([path], PACKED) as model:
        return model.tensors


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_without_packing_at_once_the_file_is_read(kind: str, pantry: Pantry, tmp_path: Path) -> None:
    path = small_model(tmp_path / "model.gguf", kind)
    expected = said_by(path, PACKED)
    with open_shelved(path, pantry, pack_at_once=False) as model:
        assert model.private_tensor_bytes == 0
        assert len(model.unstored_tensors) > 10
        assert say(model) == said_by(path)
        pack(model, pantry)
        assert model.unstored_tensors == []
        assert say(model) == expected
    with open_shelved(path, pantry, pack_at_once=False) as model:
        assert model.unstored_tensors == []
        assert say(model) == expected


def test_what_is_not_packed_at_once_takes_no_memory(pantry: Pantry, tmp_path: Path) -> None:
    path = small_model(tmp_path / "large.gguf", "Q4_0", LARGE)
    memory.trim_heap()
    before = memory.process_memory().anonymous_bytes
    with open_shelved(path, pantry, pack_at_once=False) as model:
        grown = memory.process_memory().anonymous_bytes - before
        assert grown < sum(placed.file.length for placed in model.unstored_tensors) // 2


@dataclass
class MadeUp:
    """A tensor that llama.cpp fills with bytes of no file."""

    extra: int = 1
    name: str = "made up"
    words: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.words = (4096, 1, self.extra)


@pytest.mark.parametrize("extra", [0, 1])
def test_bytes_of_no_file_are_left_to_llama(extra: int) -> None:
    loading = Loading(None)
    tensor: Any = MadeUp(extra)
    assert not loading.copying(tensor, 4096)
    assert loading.tensors == []
    loading.finish()
    loading.release()


def test_a_place_beyond_the_files_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    loading = Loading(None)
    identity = FileIdentity.of(tmp_path / "file")
    inside = loading._map(FilePlace(tmp_path / "file", 50, 50, identity))
    assert isinstance(inside, Range)
    assert loading._map(FilePlace(tmp_path / "file", 51, 50, identity)) is None
    assert len(loading.files) == 1
    loading.release()
    assert loading_module._mapped(FilePlace(tmp_path / "absent", 0, 1)) is None


def test_a_file_lends_as_what_it_is_only(tmp_path: Path) -> None:
    path, loading = tmp_path / "file", Loading(None)
    path.write_bytes(bytes(100))
    now = FileIdentity.of(path)
    before = replace(now, inode=now.inode + 1)
    assert isinstance(loading._map(FilePlace(path, 0, 50, now)), Range)
    assert loading._map(FilePlace(path, 0, 50, before)) is None
    assert isinstance(loading._map(FilePlace(path, 50, 50, now)), Range)
    assert len(loading.files) == 1
    loading.release()


def test_layers_on_another_device_take_the_ordinary_way(path: Path, pantry: Pantry) -> None:
    pack_file(path, pantry)
    with open_shelved(path, pantry, gpu_layers=1) as model:
        assert (model.tensors, model.mappings) == ((), ())
        assert model.is_of([path.stat()])
        assert pack(model, pantry) == 0
        assert say(model) == said_by(path, PACKED)


def test_without_usable_hooks_a_load_is_the_ordinary_one(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_file(path, pantry)
    expected = said_by(path, PACKED)
    monkeypatch.setattr(hooks, "hook_verdict", lambda: hooks.HookVerdict(False, "not today", None))
    with open_shelved(path, pantry) as model:
        assert (model.tensors, model.mappings) == ((), ())
        assert not model.lazily_mapped
        assert pack(model, pantry) == 0
        assert say(model) == expected


def test_a_split_model_is_packed_as_one(pantry: Pantry, tmp_path: Path) -> None:
    whole = small_model(tmp_path / "whole.gguf", "Q4_0")
    parts = split_model(whole, [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)])
    with Model.open(parts, ModelParams(use_extra_bufts=True, shelf=pantry.shelf(parts))) as model:
        expected = say(model)
        assert pack(model, pantry) > 0
        assert model.private_tensors == []
    with Model.open(parts, ModelParams(use_extra_bufts=True, shelf=pantry.shelf(parts))) as model:
        assert model.private_tensors == []
        assert len({mapping.path for mapping in model.mappings}) == 2
        assert say(model) == expected == said_by(whole, PACKED)
    shelf = pantry.shelf(parts)
    parts[1].write_bytes(parts[1].read_bytes())
    with Model.open(parts, ModelParams(use_extra_bufts=True, shelf=shelf)) as model:
        assert stored_bytes(model) == 0, "one of its parts was replaced"
