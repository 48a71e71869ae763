"""Loads that find something else than was stored or lent, and loads that fail."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from packable import (
    PACKED,
    fine_tune,
    learn,
    linux_only,
    open_shelved,
    pack_file,
    rename_over,
    said_by,
    say,
    shelved,
    small_model,
    smallest,
    stored_bytes,
)
from tiny_gguf import write_llama

from shardload import memory
from shardload.errors import LoadFailed
from shardload.gguf import GGUFFile
from shardload.llama import Model
from shardload.llama.packing import pack
from shardload.shards.entry import Entry, PackedKey
from shardload.shards.pantry import Pantry

pytestmark = [linux_only, pytest.mark.usefixtures("nothing_stays_mapped")]


def test_the_lenders_file_may_go_while_it_lends(pantry: Pantry, tmp_path: Path) -> None:
    base = small_model(tmp_path / "base.gguf", "Q8_0")
    same = fine_tune(tmp_path / "same.gguf", base, change=0)
    expected = said_by(same)
    for path in (base, same):
        learn(path, pantry)
    with open_shelved(same, pantry) as model:
        os.replace(small_model(tmp_path / "other.gguf", "Q8_0", seed=9), base)
        assert say(model) == expected


@pytest.mark.parametrize("what", ["replaced", "gone"])
def test_a_lender_that_changes_between_look_up_and_load(pantry: Pantry, tmp_path: Path, what: str) -> None:
    base = small_model(tmp_path / "base.gguf", "Q8_0")
    same = fine_tune(tmp_path / "same.gguf", base, change=0)
    for path in (base, same):
        learn(path, pantry)
    params = shelved(same, pantry)
    if what == "gone":
        base.unlink()
    else:
        os.replace(small_model(tmp_path / "other.gguf", "Q8_0", seed=9), base)
    with Model.open([same], params) as model:
        assert say(model) == said_by(same)


def test_a_file_that_is_replaced_between_look_up_and_load(path: Path, pantry: Pantry, tmp_path: Path) -> None:
    pack_file(path, pantry)
    params = shelved(path, pantry)
    other = small_model(tmp_path / "other.gguf", seed=9)
    expected = said_by(other, PACKED)
    rename_over(path, other)
    with Model.open([path], params) as model:
        assert stored_bytes(model) == 0
        assert say(model) == expected


def test_a_replaced_file_of_the_same_size_and_time_is_packed_anew(
    path: Path, pantry: Pantry, tmp_path: Path
) -> None:
    pack_file(path, pantry)
    status = path.stat()
    other = small_model(tmp_path / "other.gguf", seed=9)
    expected = said_by(other, PACKED)
    data = other.read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with open_shelved(path, pantry) as model:
        assert stored_bytes(model) == 0
        assert say(model) == expected


def test_what_is_not_what_llama_packs_is_distrusted(
    path: Path, pantry: Pantry, caplog: pytest.LogCaptureFixture
) -> None:
    expected = said_by(path, PACKED)
    with open_shelved(path, pantry) as model:
        placed = smallest(model)
        packing = placed.packing
        assert packing is not None
        with GGUFFile.open(path) as file:
            digests = pantry.digests_of(file)
        assert digests is not None
        wrong = bytearray(memory.view(packing.private))
        wrong[100] ^= 1
        key = pantry.key(digests[placed.name], placed.type_name, placed.ne, packing.buffer_type)
        pantry.store.write(key, memoryview(wrong))
    packed = len(pantry.store.entries())
    with caplog.at_level(logging.WARNING, "shardload.llama"), open_shelved(path, pantry) as model:
        assert packed == 1
        assert len(model.private_tensors) == len([p for p in model.tensors if p.packing is not None])
        assert pantry.store.entries() == []
        assert say(model) == expected
        pack(model, pantry)
        assert say(model) == expected
    assert "not what this llama.cpp packs" in caplog.text
    with open_shelved(path, pantry) as model:
        assert model.private_tensors == []
        assert say(model) == expected


def test_one_wrong_tensor_is_enough_to_distrust_all(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_file(path, pantry)
    expected = said_by(path, PACKED)
    assert len(pantry.store.entries()) > 10
    monkeypatch.setattr(memory, "same_bytes", lambda *_: False)
    with open_shelved(path, pantry) as model:
        assert stored_bytes(model) == 0
        assert say(model) == expected
    assert pantry.store.entries() == []


def test_a_stored_entry_of_another_size_is_not_used(path: Path, pantry: Pantry) -> None:
    learn(path, pantry)
    with open_shelved(path, pantry) as model:
        placed = smallest(model)
        assert placed.packing is not None
        with GGUFFile.open(path) as file:
            digests = pantry.digests_of(file)
        assert digests is not None
        key = pantry.key(digests[placed.name], placed.type_name, placed.ne, placed.packing.buffer_type)
        pantry.store.write(key, memoryview(b"short"))
    with open_shelved(path, pantry) as model:
        assert stored_bytes(model) == 0


def test_an_entry_that_goes_between_look_up_and_mapping(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack_file(path, pantry)
    expected = said_by(path, PACKED)
    look_up = pantry.store.find

    def find(key: PackedKey) -> Entry | None:
        entry = look_up(key)
        if entry is not None:
            entry.path.unlink()
        return entry

    monkeypatch.setattr(pantry.store, "find", find)
    with open_shelved(path, pantry) as model:
        assert stored_bytes(model) == 0
        assert say(model) == expected
    assert "cannot be mapped" in caplog.text


@pytest.mark.parametrize("refused_at", [0.0, 0.5])
def test_a_load_that_is_given_up_leaves_nothing_mapped(path: Path, pantry: Pantry, refused_at: float) -> None:
    pack_file(path, pantry)
    with pytest.raises(LoadFailed, match="given up"):
        Model.open([path], shelved(path, pantry), lambda done: done < refused_at)
    assert not any(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_load_that_fails_leaves_nothing_mapped(pantry: Pantry, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "odd.gguf", architecture="nonesuch")
    with pytest.raises(LoadFailed, match="nonesuch"):
        open_shelved(path, pantry)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small_model(tmp_path / "m.gguf").read_bytes()[:-100_000])
    with pytest.raises(LoadFailed):
        open_shelved(cut, pantry)


def test_a_comparison_that_cannot_be_made_fails_the_load(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    pack_file(path, pantry)
    monkeypatch.setattr(memory, "same_bytes", fail)
    with pytest.raises(MemoryError):
        open_shelved(path, pantry)


def test_distrusted_tensors_are_read_from_the_file_too(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_file(path, pantry)
    monkeypatch.setattr(memory, "same_bytes", lambda *_: False)
    with open_shelved(path, pantry, pack_at_once=False) as model:
        assert model.private_tensor_bytes == 0
        assert say(model) == said_by(path)
