from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packable import small_model
from tiny_gguf import write_llama

from shardload.gguf import GGUFFile
from shardload.llama.tokenizer import without_vocabulary
from shardload.memory import MappedFile, mapped_files
from shardload_native import hooks, slots
from shardload_native.got import SlotsNotFound
from shardload_native.hooks import (
    HookVerdict,
    LoadHooks,
    Mapping,
    hook_verdict,
    keeping,
    lazy_mapping,
    subtract,
)
from shardload_native.library import Llama, load
from shardload_native.slots import Slots
from shardload_native.tensors import Tensor

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the hooks are for Linux")


def load_model(path: Path) -> None:
    llama = load()
    model = llama.lib.llama_model_load_from_file(os.fsencode(path), llama.lib.llama_model_default_params())
    assert model != llama.ffi.NULL
    llama.lib.llama_model_free(model)


def slot_values(usable: LoadHooks) -> list[int]:
    found = usable._slots
    return [found.read(slot) for addresses in found.addresses.values() for slot in addresses]


@linux_only
def test_mappings_are_recorded_and_the_slots_put_back(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    usable = hook_verdict().hooks
    assert usable is not None
    load_model(path)  # lets the dynamic linker resolve the functions first
    before = slot_values(usable)
    with lazy_mapping() as recording:
        assert slot_values(usable) != before
        llama = load()
        model = llama.lib.llama_model_load_from_file(
            os.fsencode(path), llama.lib.llama_model_default_params()
        )
    assert slot_values(usable) == before
    assert [mapping.path for mapping in recording.mappings] == [str(path)]
    llama.lib.llama_model_free(model)


@linux_only
def test_the_slots_are_put_back_after_an_error() -> None:
    usable = hook_verdict().hooks
    assert usable is not None
    before = slot_values(usable)
    with pytest.raises(KeyError), lazy_mapping():
        raise KeyError
    assert slot_values(usable) == before


@linux_only
def test_loads_of_other_threads_are_not_recorded(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    with lazy_mapping() as recording:
        other = threading.Thread(target=load_model, args=(path,))
        other.start()
        other.join()
    assert recording.mappings == []


@linux_only
def test_what_is_unmapped_is_forgotten(tmp_path: Path) -> None:
    with lazy_mapping() as recording:
        load_model(write_llama(tmp_path / "m.gguf"))
    assert recording.mappings == []


def test_where_hooks_cannot_be_used_a_load_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise SlotsNotFound("no slots today")

    monkeypatch.setattr(slots, "find_slots", fail)
    verdict = hooks._search_once.__wrapped__()
    assert not verdict.usable
    assert verdict.hooks is None
    if sys.platform.startswith("linux"):
        assert [record.message for record in caplog.records] == [
            "lazy mapping is not available, models are read whole when opened: no slots today"
        ]
    monkeypatch.setattr(hooks, "hook_verdict", lambda: verdict)
    with lazy_mapping() as recording:
        load_model(write_llama(tmp_path / "m.gguf"))
    assert recording.mappings == []


@linux_only
def test_threads_that_ask_at_once_get_one_set_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LoadHooks] = []
    together = threading.Barrier(4)

    def find(llama: Llama) -> LoadHooks:
        assert hooks._searching.locked()
        made.append(LoadHooks(llama, Slots({}, frozenset())))
        return made[-1]

    def ask(_: int) -> HookVerdict:
        together.wait(30)
        return hook_verdict()

    hooks._search_once.cache_clear()
    monkeypatch.setattr(hooks, "find_hooks", find)
    try:
        with ThreadPoolExecutor(4) as pool:
            verdicts = list(pool.map(ask, range(4)))
    finally:
        hooks._search_once.cache_clear()
    assert len(made) == 1
    assert all(verdict.hooks is made[0] for verdict in verdicts)


@linux_only
def test_loads_of_several_threads_take_turns(tmp_path: Path) -> None:
    paths = [write_llama(tmp_path / f"{number}.gguf", seed=number) for number in range(4)]
    usable = hook_verdict().hooks
    assert usable is not None
    load_model(paths[0])
    before = slot_values(usable)

    def recorded(path: Path) -> list[str]:
        llama = load()
        with lazy_mapping() as recording:
            model = llama.lib.llama_model_load_from_file(
                os.fsencode(path), llama.lib.llama_model_default_params()
            )
            mapped = [mapping.path for mapping in recording.mappings]
        llama.lib.llama_model_free(model)
        return mapped

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(recorded, paths * 3)) == [[str(path)] for path in paths * 3]
    assert slot_values(usable) == before


class OwnFiles:
    """A host that maps files itself, and packs nothing."""

    def __init__(self) -> None:
        self.files: list[MappedFile] = []
        self.names: list[str] = []
        self.copied: dict[str, int] = {}
        self.threads: set[int] = set()

    def map_file(self, descriptor: int, length: int) -> int | None:
        file = mapped_files().open(descriptor)
        self.files.append(file)
        assert file.length == length
        return file.address

    def mapped(self, tensor: Tensor) -> None:
        self.names.append(tensor.name)
        self.threads.add(threading.get_ident())

    def copying(self, tensor: Tensor, source: int) -> bool:
        self.copied[tensor.name] = source
        return False


class Failing(OwnFiles):
    """A host that cannot do anything."""

    def map_file(self, descriptor: int, length: int) -> int | None:
        raise OSError("no more mappings")

    def mapped(self, tensor: Tensor) -> None:
        raise KeyError(tensor.name)

    def copying(self, tensor: Tensor, source: int) -> bool:
        raise MemoryError


def load_packing(path: Path, host: OwnFiles | None) -> tuple[object, list[Mapping]]:
    llama = load()
    native = llama.lib.llama_model_default_params()
    native.use_extra_bufts = True
    with lazy_mapping(host) as recording:
        model = llama.lib.llama_model_load_from_file(os.fsencode(path), native)
    assert model != llama.ffi.NULL
    return model, recording.mappings


@linux_only
def test_a_host_keeps_its_mappings_and_hears_of_each_tensor(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.gguf", "Q4_0")
    host = OwnFiles()
    model, mappings = load_packing(path, host)
    assert [mapping.kept for mapping in mappings] == [True]
    assert "blk.0.attn_norm.weight" in host.names
    assert host.threads == {threading.get_ident()}
    (file,) = host.files
    assert mappings[0].address == file.address
    data = path.read_bytes()
    for source in host.copied.values():
        at = source - file.address
        assert ctypes.string_at(source, 64) == data[at : at + 64]
    assert {"blk.0.attn_q.weight", "output.weight"} <= host.copied.keys()
    with keeping(mappings):
        load().lib.llama_model_free(model)
    assert ctypes.string_at(file.address, len(data)) == data
    file.release()


@linux_only
def test_a_load_that_fails_leaves_the_host_its_mapping(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.gguf", "Q4_0")
    host = OwnFiles()
    llama = load()
    native = llama.lib.llama_model_default_params()
    callback = llama.ffi.callback("bool(float, void *)", lambda done, _: done < 0.5)
    native.progress_callback = callback
    with llama.log.collect(), lazy_mapping(host):
        assert llama.lib.llama_model_load_from_file(os.fsencode(path), native) == llama.ffi.NULL
    (file,) = host.files
    assert ctypes.string_at(file.address, file.length) == path.read_bytes()
    file.release()


@linux_only
def test_a_host_that_fails_has_an_ordinary_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_model(tmp_path / "m.gguf", "Q4_0")
    with caplog.at_level(logging.CRITICAL, "shardload.llama"):
        model, mappings = load_packing(path, Failing())
    assert mappings
    assert not any(mapping.kept for mapping in mappings)
    load().lib.llama_model_free(model)


@linux_only
def test_hosts_hear_nothing_of_other_threads(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.gguf", "Q4_0")
    host = OwnFiles()
    with lazy_mapping(host):
        other = threading.Thread(target=load_model, args=(path,))
        other.start()
        other.join()
    assert (host.files, host.names, host.copied) == ([], [], {})


@linux_only
def test_without_access_to_tensors_there_is_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(small_model(tmp_path / "m.gguf", "Q4_0"))
    monkeypatch.setattr(hooks, "tensor_access", lambda: None)
    blind = hooks.find_hooks(load())
    assert not blind.sees_tensors
    assert not set(blind._stand_ins) & set(hooks.TENSOR_SYMBOLS)
    monkeypatch.setattr(hooks, "hook_verdict", lambda: HookVerdict(True, "usable", blind))
    host = OwnFiles()
    model, mappings = load_packing(tmp_path / "m.gguf", host)
    assert mappings
    assert not any(mapping.kept for mapping in mappings)
    assert not host.files
    load().lib.llama_model_free(model)


@linux_only
@pytest.mark.parametrize("needs_tokens", [True, False])
def test_the_lists_of_the_tokenizer_are_empty_where_no_tokens_are_needed(
    tmp_path: Path, needs_tokens: bool
) -> None:
    path = write_llama(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        count = file.vocabulary_size
    assert count
    llama = load()
    native = llama.lib.llama_model_default_params()
    kept = without_vocabulary(llama, native, "llama", count)
    with llama.log.collect() as log, lazy_mapping(needs_tokens=needs_tokens):
        model = llama.lib.llama_model_load_from_file(os.fsencode(path), native)
    del kept
    assert model != llama.ffi.NULL
    llama.lib.llama_model_free(model)
    described = {
        line.split(":")[2].split()[0]: line for _, line in log.lines if "- kv" in line and "arr[" in line
    }
    assert f",{count if needs_tokens else 0}]" in described["tokenizer.ggml.tokens"]


@given(
    address=st.integers(0, 30), length=st.integers(1, 30), at=st.integers(0, 60), removed=st.integers(0, 60)
)
def test_subtracting_ranges(address: int, length: int, at: int, removed: int) -> None:
    mapping = Mapping(address, length, "f", 100)
    pieces = subtract(mapping, at, removed)
    covered = [byte for piece in pieces for byte in range(piece.address, piece.address + piece.length)]
    gone = range(at, at + removed)
    assert covered == [byte for byte in range(address, address + length) if byte not in gone]
    for piece in pieces:
        assert piece.length > 0
        assert piece.offset - 100 == piece.address - address
