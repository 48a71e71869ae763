from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packable import (
    LARGE,
    MIXTURE,
    PACKED,
    PACKED_KINDS,
    SIZE,
    Size,
    fine_tune,
    learn,
    linux_only,
    open_pantry,
    open_shelved,
    pack_file,
    rename_over,
    said_by,
    say,
    small_model,
    speaking,
)

from shardload import memory
from shardload.errors import NotGGUF, StoreFull, StoreUnavailable
from shardload.gguf import GGUFFile
from shardload.llama.packing import pack
from shardload.llama.placed import PlacedTensor
from shardload.memory import Range
from shardload.shards.hold import held_ids
from shardload.shards.objects import Objects
from shardload.shards.pantry import LEAST_LENT_BYTES, Pantry

pytestmark = linux_only


# -- what a model says in each state


@pytest.mark.parametrize("size", [SIZE, MIXTURE], ids=["dense", "experts"])
@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_a_model_says_the_same_in_every_state(kind: str, size: Size, pantry: Pantry, tmp_path: Path) -> None:
    path = small_model(tmp_path / "model.gguf", kind, size)
    said = said_by(path, PACKED)
    in_file = said_by(path)
    with open_shelved(path, pantry) as model, speaking(model) as speak:
        assert speak() == said
        total = sum(placed.file.length for placed in model.private_tensors)
        assert pack(model, pantry) == total > 0
        assert model.private_tensor_bytes == 0
        assert speak() == said, "it goes on from the store"
        with model.layouts.computing("file"):
            assert speak() == in_file, "the other order is at hand"
        assert speak() == said
    with open_shelved(path, pantry) as model:
        assert say(model) == said
    # Either order has kernels of its own, which round differently.
    assert abs(said.after_prompt - in_file.after_prompt).max() < 0.05 * abs(said.after_prompt).max()
    assert said.tokens == in_file.tokens


def test_the_index_knows_the_file_afterwards(path: Path, pantry: Pantry) -> None:
    pack_file(path, pantry)
    assert set(pantry.store.users().values()) == {(path,)}
    assert len(pantry.store.entries()) == len(set(pantry.store.users()))


def test_progress_is_told_in_two_stages(path: Path, pantry: Pantry) -> None:
    told: list[tuple[str, int, int]] = []
    changes: list[int] = []
    with open_shelved(path, pantry) as model:
        pack(model, pantry, progress=lambda *one: told.append(one), moved=lambda: changes.append(1))
    assert [stage for stage, _, _ in told] == sorted((stage for stage, _, _ in told), reverse=True)
    for stage in ("reading", "packing"):
        assert [done for name, done, total in told if name == stage][-1] == next(
            total for name, _, total in told if name == stage
        )
    assert changes == [1]


def test_private_memory_is_given_back(pantry: Pantry, tmp_path: Path) -> None:
    path = small_model(tmp_path / "large.gguf", "Q4_0", LARGE)
    with open_shelved(path, pantry) as model:
        memory.trim_heap()
        before = memory.process_memory().anonymous_bytes
        private_bytes = model.private_tensor_bytes
        assert private_bytes > 10 * 2**20
        pack(model, pantry)
        memory.trim_heap()
        given_back = before - memory.process_memory().anonymous_bytes
        assert given_back > private_bytes // 2


def test_the_pages_that_leave_after_packing_are_the_models_own(
    pantry: Pantry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = small_model(tmp_path / "lender.gguf", "Q4_0")
    path = fine_tune(tmp_path / "same.gguf", lender, change=0)
    for one in (lender, path):
        learn(one, pantry)
    left: list[Range] = []
    monkeypatch.setattr(memory, "page_out", lambda address, length: left.append(Range(address, length)))
    with open_shelved(path, pantry, pack_at_once=False) as model:
        lent = {p.file for p in model.tensors if p.packing is not None and p.file != p.packing.source}
        own = {p.packing.source for p in model.tensors if p.packing is not None}
        pack(model, pantry)
    assert lent
    assert not lent & set(left)
    assert set(left) == own


def test_fine_tunes_find_what_the_first_one_packed(
    path: Path, pantry: Pantry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_file(path, pantry)
    written: list[str] = []
    write = Objects.write
    monkeypatch.setattr(
        Objects, "write", lambda self, key, data: written.append(key.type_name) or write(self, key, data)
    )
    tuned = fine_tune(tmp_path / "tuned.gguf", path)
    expected = said_by(tuned, PACKED)
    with open_shelved(path, pantry) as model, open_shelved(tuned, pantry) as other:
        pack(other, pantry)
        assert 0 < len(written) < len([p for p in other.tensors if p.packing is not None]) // 2
        mine = {p.packing.place for p in model.tensors if p.packing is not None}
        shared = [p.name for p in other.tensors if p.packing is not None and p.packing.place in mine]
        assert "blk.1.ffn_up.weight" in shared
        assert say(other) == expected
    again = fine_tune(tmp_path / "again.gguf", path, change=0)
    written.clear()
    assert pack_file(again, pantry) > 0
    assert written == []


def test_what_another_process_stored_wrongly_is_not_used(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack_file(path, pantry)
    expected = said_by(path, PACKED)
    for entry in pantry.store.entries():
        record = Path(f"{entry.path}.json")
        data = bytearray(entry.path.read_bytes())
        data[-1] ^= 1
        record.unlink()
        entry.path.unlink()
        pantry.store.write(entry.key, memoryview(data))
    pantry.contents.clear()
    with open_shelved(path, pantry) as model:
        assert pack(model, pantry) > 0
        assert model.private_tensors == []
        assert say(model) == expected
    assert "packed anew" in caplog.text
    with open_shelved(path, pantry) as model:
        assert model.private_tensors == []
        assert say(model) == expected


# -- what goes wrong


def test_a_file_that_was_replaced_since_the_open_is_not_packed(
    path: Path, pantry: Pantry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = said_by(path, PACKED)
    with open_shelved(path, pantry) as model:
        rename_over(path, small_model(tmp_path / "other.gguf", seed=9))
        assert pack(model, pantry) == 0
        assert say(model) == expected
    assert pantry.store.entries() == []
    assert "was replaced" in caplog.text


def edit_in_place(path: Path) -> None:
    """Change the weights of a file behind those who have it open."""
    with GGUFFile.open(path) as file:
        tensors = [tensor for tensor in file.tensors.values() if tensor.nbytes >= LEAST_LENT_BYTES]
    with path.open("r+b") as opened:
        for tensor in tensors:
            opened.seek(tensor.offset)
            data = opened.read(tensor.nbytes)
            opened.seek(tensor.offset)
            opened.write(data[::-1])


def test_a_lender_that_is_edited_spoils_nothing_that_is_stored(pantry: Pantry, tmp_path: Path) -> None:
    lender = small_model(tmp_path / "lender.gguf", "Q4_0")
    path = fine_tune(tmp_path / "same.gguf", lender, change=0)
    for one in (lender, path):
        learn(one, pantry)
    expected = said_by(path, PACKED)
    with open_shelved(path, pantry, pack_at_once=False) as model:
        assert any(p.packing is not None and p.file != p.packing.source for p in model.tensors), "it is lent"
        edit_in_place(lender)
        assert pack(model, pantry) > 0
    with open_shelved(path, pantry) as model:
        assert model.private_tensors == []
        assert say(model) == expected


def test_a_file_that_is_edited_while_it_is_packed_is_not_packed(
    path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learn(path, pantry)
    write = PlacedTensor.pack
    edits = iter([edit_in_place])

    def edit_first(placed: PlacedTensor) -> None:
        for edit in edits:
            edit(path)
        write(placed)

    with open_shelved(path, pantry, pack_at_once=False) as model:
        monkeypatch.setattr(PlacedTensor, "pack", edit_first)
        assert pack(model, pantry) == 0
    assert pantry.store.entries() == []
    assert caplog.text.count("was replaced") == 1


def test_a_file_that_is_gone_is_not_packed(path: Path, pantry: Pantry) -> None:
    with open_shelved(path, pantry) as model:
        path.unlink()
        with pytest.raises(NotGGUF, match="no such file"):
            pack(model, pantry)
        assert len(model.private_tensors) > 0
        assert say(model).tokens


def test_for_what_is_stored_already_nobody_looks_at_the_file(path: Path, pantry: Pantry) -> None:
    assert pack_file(path, pantry) > 0
    with open_shelved(path, pantry) as model:
        path.unlink()
        assert pack(model, pantry) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_in_the_middle(
    code: int, path: Path, pantry: Pantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = said_by(path, PACKED)
    write, written = Objects.write, []

    def write_five(self: Objects, key: Any, data: memoryview) -> Any:
        if len(written) == 5:
            raise OSError(code, os.strerror(code))
        written.append(key)
        return write(self, key, data)

    monkeypatch.setattr(Objects, "write", write_five)
    error = StoreFull if code == errno.ENOSPC else StoreUnavailable
    with open_shelved(path, pantry) as model:
        all_tensors = len(model.private_tensors)
        changes: list[int] = []
        with pytest.raises(error):
            pack(model, pantry, moved=lambda: changes.append(1))
        assert len(model.private_tensors) == all_tensors - 5, "what was written is used"
        assert changes == [1]
        assert say(model) == expected


def test_a_store_of_limited_size_keeps_what_fits(path: Path, tmp_path: Path) -> None:
    expected = said_by(path, PACKED)
    with open_pantry(tmp_path / "store", limit_bytes=300_000) as pantry:
        with open_shelved(path, pantry) as model:
            with pytest.raises(StoreFull):
                pack(model, pantry)
            assert model.private_tensor_bytes > 0
            assert say(model) == expected
        assert 0 < pantry.store.used_bytes() <= 300_000
        with open_shelved(path, pantry) as model:
            assert say(model) == expected


@pytest.mark.parametrize("is_stored", [False, True], ids=["packed", "opened"])
def test_what_a_model_maps_is_held_until_it_is_closed(path: Path, pantry: Pantry, is_stored: bool) -> None:
    holds = pantry.store.directory / "holds"
    if is_stored:
        pack_file(path, pantry)
    assert held_ids(holds) == frozenset()
    with open_shelved(path, pantry) as first, open_shelved(path, pantry) as second:
        for model in (first, second):
            pack(model, pantry)
        ids = {entry.id for entry in pantry.store.entries()}
        assert held_ids(holds) == ids != frozenset()
        first.close()
        assert held_ids(holds) == ids, "the other one has it mapped"
    assert held_ids(holds) == frozenset()


def test_closed_models_make_room_in_a_store_of_limited_size(path: Path, tmp_path: Path) -> None:
    other = small_model(tmp_path / "other.gguf", seed=9)
    with open_pantry(tmp_path / "measured") as pantry:
        pack_file(path, pantry)
        room = pantry.store.used_bytes() * 3 // 2
    with open_pantry(tmp_path / "store", limit_bytes=room) as pantry:
        for one in (path, other):
            pack_file(one, pantry)
            with open_shelved(one, pantry) as model:
                assert model.private_tensors == []
        with open_shelved(path, pantry) as model:
            assert model.private_tensors != [], "it had to make room"


def test_the_store_is_removed_while_models_compute_from_it(
    path: Path, pantry: Pantry, tmp_path: Path
) -> None:
    with open_shelved(path, pantry) as first:
        pack(first, pantry)
        with open_shelved(path, pantry) as second, speaking(first) as speak, speaking(second) as repeat:
            expected = speak()
            shutil.rmtree(tmp_path / "store")
            assert speak() == expected
            assert repeat() == expected
    with open_shelved(path, pantry) as model:
        assert model.private_tensors != []
        assert pack(model, pantry) > 0
        assert say(model) == expected
    with open_shelved(path, pantry) as model:
        assert model.private_tensors == []


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from packable import open_pantry, open_shelved
from shardload.llama.packing import pack
from shardload.shards.part import PartFile
calls = [0]
for name in ("write", "sync", "commit"):
    def step(self, *arguments, real=getattr(PartFile, name)):
        calls[0] += 1
        if calls[0] == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)
    setattr(PartFile, name, step)
with open_pantry(Path({store!r})) as pantry, open_shelved(Path({model!r}), pantry) as model:
    pack(model, pantry)
"""


@pytest.mark.parametrize("at", [22, 25])
def test_killed_in_the_middle_the_next_start_goes_on(at: int, path: Path, tmp_path: Path) -> None:
    code = KILLED.format(path=sys.path, at=at, store=str(tmp_path / "store"), model=str(path))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert child.returncode == -9, child.stderr.decode()
    expected = said_by(path, PACKED)
    with open_pantry(tmp_path / "store") as pantry:
        found = pantry.store.entries()
        assert found
        assert not pantry.store.verify().damaged
        with open_shelved(path, pantry) as model:
            private = len(model.private_tensors)
            assert private == len([p for p in model.tensors if p.packing is not None]) - len(found)
            assert say(model) == expected
            pack(model, pantry)
            assert model.private_tensors == []
            assert say(model) == expected
        names = os.listdir(tmp_path / "store" / "packed")
        assert not [name for name in names if name.endswith(".part")]
