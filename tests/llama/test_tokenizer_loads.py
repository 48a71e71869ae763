"""Which loads share a vocabulary, and which leave a model its own."""

from __future__ import annotations

import gc
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from copied_gguf import copy_model
from tiny_gguf import sentence_piece, write_llama

from shardload.errors import HandleClosed, LoadFailed
from shardload.gguf import GGUFFile
from shardload.llama import Model, ModelParams
from shardload.llama import model as model_module
from shardload.llama import tokenizer as module
from shardload.llama.tokenizer import SharedVocabularies
from shardload.llama.tokenizer_identity import TokenizerIdentity
from shardload.shards.identity import FileIdentity
from shardload_native.library import load


def test_a_failed_load_gives_the_vocabulary_back(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, tmp_path: Path
) -> None:
    seen: list[int] = []

    def give_up(done: float) -> bool:
        seen.append(len(shared))
        return False

    def fail(done: float) -> bool:
        raise KeyError("mine")

    with pytest.raises(LoadFailed, match="given up"):
        Model.open([two_paths[0]], progress=give_up)
    assert seen[0] == 1
    with pytest.raises(KeyError, match="mine"):
        Model.open([two_paths[0]], progress=fail)
    unknown = write_llama(tmp_path / "foo.gguf", architecture="foo")
    with pytest.raises(LoadFailed, match="unknown model architecture"):
        Model.open([unknown])
    assert len(shared) == 0


def test_a_forgotten_model_gives_the_vocabulary_back(
    two_paths: tuple[Path, Path], shared: SharedVocabularies
) -> None:
    model: Model | None = Model.open([two_paths[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        model = None
        gc.collect()
    assert model is None
    Model.open([two_paths[1]]).close()
    assert len(shared) == 0


def test_many_threads_load_a_vocabulary_once(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    really = module._load_vocabulary

    def counted(llama: Any, paths: Any) -> Any:
        loads.append(paths[0])
        return really(llama, paths)

    monkeypatch.setattr(module, "_load_vocabulary", counted)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda number: Model.open([two_paths[number % 2]]), range(16)))
    assert len(loads) == 1
    assert len({int(load().ffi.cast("uintptr_t", model.vocab.pointer)) for model in models}) == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(Model.close, models))
    assert len(shared) == 0


def test_doubt_leaves_a_model_its_own_vocabulary(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens_alone() -> bool:
        with Model.open([two_paths[0]]) as model:
            assert model.vocab.tokenize("the")
            assert len(shared) == 0
            return bool(model.vocab.pointer == model.llama.lib.llama_model_get_vocab(model.pointer))

    def fail(llama: Any, paths: Any) -> Any:
        raise LoadFailed(str(paths[0]), "as told")

    def another_size(file: GGUFFile) -> TokenizerIdentity:
        return TokenizerIdentity("another", 7, "llama")

    for name, replacement in (("identify", another_size), ("_load_vocabulary", fail)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            assert opens_alone()
    # With it llama.cpp looks texts of tokens up in the model's own vocabulary.
    with monkeypatch.context() as patch:
        patch.setitem(os.environ, "LLAMA_BATCH_DEBUG", "0")
        assert opens_alone()


def test_a_header_that_gives_another_size_keeps_its_vocabulary(
    two_paths: tuple[Path, Path], shared: SharedVocabularies, tmp_path: Path
) -> None:
    path = copy_model(two_paths[0], tmp_path / "m.gguf", lambda writer: writer.add_vocab_size(40_000))
    with Model.open([path]) as model, Model.open([two_paths[0]]) as other:
        assert len(shared) == 1
        assert model.n_vocab == other.n_vocab < 40_000
        assert model.vocab.pointer != other.vocab.pointer


def test_files_that_nobody_can_read_have_no_vocabulary_to_share(
    tmp_path: Path, shared: SharedVocabularies
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF and then nothing")
    for path in (damaged, tmp_path / "absent.gguf"):
        assert shared.acquire([path]) is None


def test_a_file_replaced_meanwhile_is_not_taken_for_what_it_was(
    two_paths: tuple[Path, Path],
    shared: SharedVocabularies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [(text.replace("the", "The"), score, kind) for text, score, kind in sentence_piece()]
    other = write_llama(tmp_path / "other.gguf", tokens=words)
    really = module._load_vocabulary

    def replaced_before(llama: Any, paths: Any) -> Any:
        other.replace(paths[0])
        return really(llama, paths)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_load_vocabulary", replaced_before)
        assert shared.acquire([two_paths[0]]) is None
    with Model.open([two_paths[1]]) as model:
        assert model.vocab.piece(model.vocab.tokenize(" the", add_special=False)[-1]) == b" the"


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("word", ["the", "The"])
def test_a_model_replaced_meanwhile_does_not_speak_with_the_tokens_of_another(
    two_paths: tuple[Path, Path],
    shared: SharedVocabularies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    lazy: bool,
) -> None:
    words = [(text.replace("the", word), score, kind) for text, score, kind in sentence_piece()]
    other = write_llama(tmp_path / "other.gguf", seed=9, tokens=words)
    really = model_module.load_files

    def replaced_before(llama: Any, paths: Any, params: Any) -> Any:
        other.replace(paths[0])
        return really(llama, paths, params)

    monkeypatch.setattr(model_module, "load_files", replaced_before)
    if word == "the":
        with Model.open([two_paths[0]], ModelParams(lazy=lazy)) as model:
            assert model.vocab.tokenize("the")
    else:
        with pytest.raises(LoadFailed, match="replaced while it was opened"):
            Model.open([two_paths[0]], ModelParams(lazy=lazy))
    assert len(shared) == 0


def test_a_header_is_read_again_when_the_file_is_another(
    two_paths: tuple[Path, Path],
    shared: SharedVocabularies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, read = two_paths[0], list[Path]()

    def reading(path: Path) -> TokenizerIdentity | None:
        read.append(path)
        return really(path)

    really = module._identity_of
    monkeypatch.setattr(FileIdentity, "unsettled_seconds", 0.0)
    with Model.open([path]):  # whose vocabulary is compared with what the header said
        monkeypatch.setattr(module, "_identity_of", reading)
        for _ in range(3):
            released_twice(shared, path)
        assert read == []
        write_llama(tmp_path / "other.gguf", seed=7).replace(path)
        released_twice(shared, path)
        assert read == [path]
        monkeypatch.setattr(FileIdentity, "unsettled_seconds", 0.01)
        os.utime(path)
        for _ in range(3):
            released_twice(shared, path)
    assert read == [path] * 4


def released_twice(shared: SharedVocabularies, path: Path) -> None:
    vocab = shared.acquire([path])
    assert vocab is not None
    assert vocab.tokenize("the")
    shared.release(vocab)
    shared.release(vocab)
    with pytest.raises(HandleClosed):
        vocab.tokenize("the")


def test_plain_loads_share_as_well(two_paths: tuple[Path, Path], shared: SharedVocabularies) -> None:
    with (
        Model.open([two_paths[0]], ModelParams(lazy=False)) as plain,
        Model.open([two_paths[1]], ModelParams(use_extra_bufts=True)) as packed,
    ):
        assert plain.vocab.pointer == packed.vocab.pointer
        assert len(shared) == 1
