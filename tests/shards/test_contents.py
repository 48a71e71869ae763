from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import finish

from shardload.gguf import GGUFFile
from shardload.memory import drop_file_cache, file_resident_bytes
from shardload.shards import contents as contents_module
from shardload.shards.contents import Content, Contents, compute
from shardload.shards.identity import FileIdentity

NAMES = [f"blk.{at}.weight" for at in range(5)]


def write(path: Path, *, seed: int = 1, changed: str = "", split: int = 0, name: str = "x") -> Path:
    """A file of five tensors; ``changed`` names one that is its own."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_name(name)
    for at, tensor in enumerate(NAMES):
        chance = np.random.default_rng(seed + at + (1000 if tensor == changed else 0))
        writer.add_tensor(tensor, chance.standard_normal((8, 32), dtype=np.float32))
    finish(writer)
    return path


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return Contents(tmp_path / "contents")


def digests(path: Path) -> dict[str, str]:
    with GGUFFile(path) as file:
        found = compute(file)
    assert found is not None
    return found


def test_a_digest_is_of_type_shape_and_bytes(tmp_path: Path) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        done: list[tuple[int, int]] = []
        found = compute(file, lambda part, total: done.append((part, total)))
        assert found is not None
        tensor = file.tensors[NAMES[0]]
        data = b"F32 32x8\n" + file.tensor(tensor.name).tobytes()
        assert found[tensor.name] == hashlib.sha256(data).hexdigest()
        assert found.keys() == file.tensors.keys()
        assert done[-1] == (5 * tensor.nbytes, 5 * tensor.nbytes)


def test_the_same_weights_have_the_same_digests_wherever_they_are(tmp_path: Path) -> None:
    one = digests(write(tmp_path / "a.gguf"))
    other = digests(write(tmp_path / "b.gguf", changed=NAMES[2], name="a longer name than before"))
    assert {name for name in NAMES if one[name] != other[name]} == {NAMES[2]}


def test_reading_can_be_stopped(tmp_path: Path) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        asked = iter([False, True])
        assert compute(file, should_stop=lambda: next(asked)) is None


@pytest.mark.parametrize("how", ["replaced", "edited", "cut", "edited meanwhile", "cut meanwhile"])
def test_a_file_that_is_not_what_was_opened_has_no_digests(
    tmp_path: Path, change: Callable[..., None], how: str
) -> None:
    path = write(tmp_path / "a.gguf")
    with GGUFFile(path) as file:

        def harm() -> None:
            if how == "replaced":
                os.replace(write(tmp_path / "b.gguf"), path)
            elif how.startswith("edited"):
                change(path, path.stat().st_size - 1)
            else:
                os.truncate(path, path.stat().st_size - 1)

        def meanwhile(done: int, _: int) -> None:
            if done == 1024:
                harm()

        if not how.endswith("meanwhile"):
            harm()
        assert compute(file, meanwhile if how.endswith("meanwhile") else None) is None


def test_what_was_read_is_remembered(tmp_path: Path, contents: Contents) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        assert contents.known(file) is None
        assert contents.digests(FileIdentity.of(file.path)) is None
        found = contents.remember(file)
        assert found is not None
        assert contents.known(file) == Contents(contents.directory).known(file) == found
        assert contents.digests(FileIdentity.of(file.path)) == found
        assert contents.remember(file, should_stop=lambda: True) is None


def test_a_split_model_is_known_when_all_its_files_are(tmp_path: Path, contents: Contents) -> None:
    write(tmp_path / "m.gguf", split=2)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    with GGUFFile(parts[0]) as file:
        found = contents.remember(file)
        assert found is not None
        assert found == digests(write(tmp_path / "whole.gguf"))
        assert contents.known(file) == found
        assert contents.lenders([found[NAMES[4]]])[found[NAMES[4]]].path == parts[2]
    os.utime(parts[1])
    with GGUFFile(parts[0]) as file:
        assert contents.known(file) is None


def test_a_changed_file_is_not_known(tmp_path: Path, contents: Contents, change: Callable[..., None]) -> None:
    path = write(tmp_path / "a.gguf")
    with GGUFFile(path) as file:
        found = contents.remember(file)
    assert found is not None
    change(path, path.stat().st_size - 1)
    with GGUFFile(path) as file:
        assert contents.known(file) is None
    assert contents.lenders(found.values()) == {}
    assert contents.holders() == {}


def test_a_file_that_changes_meanwhile_is_not_remembered(tmp_path: Path, contents: Contents) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        found = compute(file)
        assert found is not None
        os.utime(file.path)
        assert not contents.note(file, found)
        file.path.unlink()
        assert not contents.note(file, found)
    assert not contents.directory.exists()


def test_changes_within_one_tick_are_waited_for(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.gguf")
    identity = FileIdentity.of(path)
    waited: list[float] = []
    monkeypatch.setattr(contents_module.time, "sleep", waited.append)
    monkeypatch.setattr(contents_module.time, "time", lambda: identity.ctime_ns / 1e9 + 0.005)
    assert contents.record(identity, path, {"t": Content("d", 0, 1)})
    assert waited == [pytest.approx(0.015, abs=1e-4)]
    monkeypatch.setattr(contents_module.time, "time", lambda: identity.ctime_ns / 1e9 + 1)
    assert contents.record(identity, path, {"t": Content("d", 0, 1)})
    assert len(waited) == 1


def test_the_longest_known_file_lends_first(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([30.0, 10.0, 20.0])
    monkeypatch.setattr(contents_module.time, "time", lambda: now[0])
    paths = [tmp_path / f"{name}.gguf" for name in "abc"]
    for path in paths:
        now = [next(clock)]
        with GGUFFile(write(path, changed=NAMES[1] if path is paths[1] else "")) as file:
            found = contents.remember(file)
            assert found is not None
            offset = file.tensors[NAMES[0]].offset
    assert contents.holders()[found[NAMES[0]]] == (paths[1], paths[2], paths[0])
    assert contents.holders()[found[NAMES[1]]] == (paths[2], paths[0])
    first = contents.lenders([*found.values(), "nobody's"])
    assert {name: first[digest].path for name, digest in found.items()} == {
        name: paths[2] if name == NAMES[1] else paths[1] for name in NAMES
    }
    lender = first[found[NAMES[0]]]
    assert (lender.offset, lender.nbytes) == (offset, 1024)
    assert lender.identity == FileIdentity.of(paths[1])
    paths[1].unlink()
    assert contents.lenders([found[NAMES[0]]])[found[NAMES[0]]].path == paths[2]


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_at_a_files_path_before_lends_nothing(
    tmp_path: Path, contents: Contents, order: int
) -> None:
    path, found = tmp_path / "a.gguf", []
    for changed in (NAMES[0], NAMES[1]):
        write(tmp_path / "fresh.gguf", changed=changed)
        os.replace(tmp_path / "fresh.gguf", path)
        with GGUFFile(path) as file:
            remembered = contents.remember(file)
            assert remembered is not None
            found.append(remembered)
    old, new = found[0][NAMES[0]], found[1][NAMES[0]]
    lenders = contents.lenders([new, old][::order])
    assert {digest: place.identity for digest, place in lenders.items()} == {new: FileIdentity.of(path)}


def test_what_another_process_learns_is_seen(tmp_path: Path, contents: Contents) -> None:
    assert contents.lenders(["d"]) == {}
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        found = Contents(contents.directory).remember(file)
    assert found is not None
    assert contents.lenders(found.values()).keys() == set(found.values())


def test_files_that_are_gone_are_forgotten(tmp_path: Path, contents: Contents) -> None:
    for name in "ab":
        with GGUFFile(write(tmp_path / f"{name}.gguf")) as file:
            contents.remember(file)
    assert contents.forget_gone() == 0
    (tmp_path / "a.gguf").unlink()
    assert contents.forget_gone() == 1
    assert contents.forget_gone() == 0
    assert len(os.listdir(contents.directory)) == 1
    contents.clear()
    assert os.listdir(contents.directory) == []


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"version":2'])
def test_damaged_records_are_not_known(tmp_path: Path, contents: Contents, data: bytes) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        found = contents.remember(file)
        assert found is not None
        (record,) = contents.directory.iterdir()
        record.write_bytes(data)
        assert contents.known(file) is None
        assert Contents(contents.directory).lenders(found.values()) == {}
        assert contents.remember(file) == found == contents.known(file)


def test_records_of_other_versions_are_not_known(tmp_path: Path, contents: Contents) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        contents.remember(file)
        (record,) = contents.directory.iterdir()
        record.write_bytes(record.read_bytes().replace(b'"version":1', b'"version":9'))
        assert contents.known(file) is None


def test_where_nothing_can_be_written_nothing_is_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    contents = Contents(tmp_path / "file" / "contents")
    with GGUFFile(write(tmp_path / "a.gguf")) as file, caplog.at_level(logging.INFO, "shardload.shards"):
        assert contents.remember(file) == digests(file.path)
        assert contents.known(file) is None
    assert "are not remembered" in caplog.text
    contents.clear()


def test_records_of_another_user_are_not_known(
    shared_path: Path, forbidden: Callable[..., AbstractContextManager[None]]
) -> None:
    contents = Contents(shared_path / "contents")
    with GGUFFile(write(shared_path / "a.gguf")) as file:
        assert contents.remember(file) is not None
        with forbidden(contents.directory, 0o000):
            assert contents.known(file) is None
            assert Contents(contents.directory).holders() == {}
            assert contents.forget_gone() == 0
        assert contents.known(file) is not None


def test_no_page_stays_in_memory_for_it(disk_path: Path) -> None:
    path = write(disk_path / "a.gguf")
    with path.open("ab") as file:
        os.fsync(file.fileno())
    with GGUFFile(path) as opened:
        before = file_resident_bytes(path) if not drop_file_cache(path) else 0
        assert compute(opened) is not None
        assert file_resident_bytes(path) in (before, None)


def test_a_model_that_is_copied_is_another_file(tmp_path: Path, contents: Contents) -> None:
    with GGUFFile(write(tmp_path / "a.gguf")) as file:
        found = contents.remember(file)
    assert found is not None
    with GGUFFile(shutil.copy2(tmp_path / "a.gguf", tmp_path / "b.gguf")) as copy:
        assert contents.known(copy) is None
        assert contents.remember(copy) == found
    assert len(contents.holders()[found[NAMES[0]]]) == 2
