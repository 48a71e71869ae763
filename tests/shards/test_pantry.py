from __future__ import annotations

import os
from pathlib import Path

import pytest
from packable import fine_tune, learn, open_pantry, rename_over, small_model

from shardload.errors import StoreUnavailable
from shardload.gguf import GGUFFile
from shardload.shards.hold import held_ids
from shardload.shards.identity import FileIdentity
from shardload.shards.pantry import LEAST_LENT_BYTES, Pantry
from shardload.shards.store import Store

NAME = "blk.0.ffn_up.weight"
NE = (256, 512, 1, 1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return small_model(tmp_path / "base.gguf")


def digest_of(path: Path, pantry: Pantry, name: str = NAME) -> str:
    with GGUFFile.open(path) as file:
        digests = pantry.digests_of(file)
    assert digests is not None
    return digests[name]


def test_a_file_that_nobody_looked_at_has_nothing(pantry: Pantry, base: Path) -> None:
    shelf = pantry.shelf([base])
    assert shelf.packed(NAME, "q4_K", NE, "CPU_REPACK") is None
    assert shelf.lent(NAME) is None
    assert shelf.describes(FileIdentity.of(base))
    shelf.loaded()


def test_packed_bytes_are_found_for_the_same_order_only(pantry: Pantry, base: Path) -> None:
    key = pantry.key(digest_of(base, pantry), "q4_K", NE, "CPU_REPACK")
    entry = pantry.store.write(key, memoryview(b"packed"))
    shelf = pantry.shelf([base])
    found = shelf.packed(NAME, "q4_K", NE, "CPU_REPACK")
    assert found is not None
    assert (found.path, found.offset, found.nbytes) == (entry.path, 0, 6)
    assert shelf.packed(NAME, "q4_K", NE, "AMX") is None
    assert shelf.packed("blk.1.ffn_up.weight", "q4_K", NE, "CPU_REPACK") is None
    with open_pantry(pantry.store.directory, build="another build") as other:
        assert other.shelf([base]).packed(NAME, "q4_K", NE, "CPU_REPACK") is None


def test_what_is_used_is_held(pantry: Pantry, base: Path) -> None:
    holds = pantry.store.directory / "holds"
    key = pantry.key(digest_of(base, pantry), "q4_K", NE, "CPU_REPACK")
    with open_pantry(pantry.store.directory) as other:
        hold = other.hold()
        entry = other.stored(key, memoryview(b"packed"), hold)
        assert entry.id in held_ids(holds)
    assert held_ids(holds) == frozenset(), "the pantry ends all"
    shelf = pantry.shelf([base])
    assert shelf.packed(NAME, "q4_K", NE, "CPU_REPACK") is not None
    assert held_ids(holds) == frozenset()
    hold = shelf.loaded()
    assert held_ids(holds) == {entry.id}
    hold.close()
    assert held_ids(holds) == frozenset()


def test_what_was_found_can_be_distrusted(pantry: Pantry, base: Path) -> None:
    digest = digest_of(base, pantry)
    mine, other = (pantry.key(digest, "q4_K", NE, buffer) for buffer in ("CPU_REPACK", "AMX"))
    for key in (mine, other):
        pantry.store.write(key, memoryview(b"packed"))
    shelf = pantry.shelf([base])
    assert shelf.packed(NAME, "q4_K", NE, "CPU_REPACK") is not None
    shelf.distrust()
    assert pantry.store.find(mine) is None
    assert pantry.store.find(other) is not None


def test_the_longest_known_file_lends(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    tuned = [fine_tune(tmp_path / f"tuned-{seed}.gguf", base, seed=seed) for seed in (2, 3)]
    for path in (base, *tuned):
        learn(path, pantry)
    assert pantry.shelf([base]).lent(NAME) is None, "its own bytes are its own"
    with GGUFFile.open(base) as file:
        info = file.tensors[NAME]
    for path in tuned:
        shelf = pantry.shelf([path])
        found = shelf.lent(NAME)
        assert found is not None
        assert (found.path, found.offset, found.nbytes) == (base, info.offset, info.nbytes)
        assert found.identity is not None
        assert found.identity.same(FileIdentity.of(base))
        assert not shelf.describes(found.identity)
        assert shelf.lent("blk.0.attn_q.weight") is None, "it was tuned"


def test_small_tensors_are_not_lent(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(tmp_path / "tuned.gguf", base)
    for path in (base, tuned):
        learn(path, pantry)
    with GGUFFile.open(tuned) as file:
        small = [name for name, tensor in file.tensors.items() if tensor.nbytes < LEAST_LENT_BYTES]
    shelf = pantry.shelf([tuned])
    assert "output_norm.weight" in small
    assert [name for name in small if shelf.lent(name) is not None] == []


def test_a_lender_that_changed_lends_no_more(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(tmp_path / "tuned.gguf", base)
    for path in (base, tuned):
        learn(path, pantry)
    os.replace(small_model(tmp_path / "other.gguf", seed=9), base)
    assert pantry.shelf([tuned]).lent(NAME) is None


def test_a_file_in_the_place_of_another_is_not_described(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    shelf = pantry.shelf([base])
    rename_over(base, small_model(tmp_path / "other.gguf", seed=9))
    assert not shelf.describes(FileIdentity.of(base))


def test_files_that_are_gone_have_nothing(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    learn(base, pantry)
    shelf = pantry.shelf([base, tmp_path / "absent.gguf"])
    assert shelf.packed(NAME, "q4_K", NE, "CPU_REPACK") is None
    assert shelf.lent(NAME) is None


def test_digests_are_computed_once(pantry: Pantry, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_of(base, pantry)
    monkeypatch.setattr("shardload.shards.contents.compute", lambda *_: pytest.fail("it is known"))
    assert digest_of(base, pantry) == digest


def test_looking_through_a_file_can_be_stopped(pantry: Pantry, base: Path) -> None:
    with GGUFFile.open(base) as file:
        assert pantry.digests_of(file, stops=lambda: True) is None
        seen: list[tuple[int, int]] = []
        assert pantry.digests_of(file, lambda *bytes_done: seen.append(bytes_done)) is not None
    assert seen[-1][0] == seen[-1][1]


def test_a_store_that_cannot_be_written_tells(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file", reserve_bytes=0)
    pantry = Pantry(store, "build")
    with pytest.raises(StoreUnavailable):
        pantry.stored(pantry.key("digest", "q4_K", NE, "CPU_REPACK"), memoryview(b"packed"), pantry.hold())
    pantry.close()
    pantry.close()


def test_a_file_knows_what_it_lends(pantry: Pantry, base: Path, tmp_path: Path) -> None:
    same = fine_tune(tmp_path / "same.gguf", base, change=0)
    assert pantry.known([base]) == frozenset()
    assert not pantry.shelf([base]).lends(NAME)
    for path in (base, same):
        learn(path, pantry)
    digest = digest_of(base, pantry)
    first, second = pantry.shelf([base]), pantry.shelf([same])
    assert (first.lends(NAME), second.lends(NAME)) == (True, False)
    assert (first.lent(NAME) is None, second.lent(NAME) is None) == (True, False)
    assert not first.lends("blk.0.attn_norm.weight"), "too small"
    assert first.digest(NAME) == second.digest(NAME) == digest
    assert first.digest("nonesuch") is None
    assert pantry.known([base]) == pantry.known([same]) >= {digest}
    assert pantry.known([base, tmp_path / "gone.gguf"]) == frozenset()
