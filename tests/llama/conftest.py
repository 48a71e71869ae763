from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from packable import open_shelved, pack_file, small_model
from paged_models import paged, write_out
from tiny_gguf import write_llama

from shardload.llama import Context, ContextParams, Model
from shardload.llama import model as model_module
from shardload.llama import paged as paged_module
from shardload.llama import tokenizer as tokenizer_module
from shardload.llama.paged import PagedWeights
from shardload.llama.tokenizer import SharedVocabularies
from shardload.memory import Range
from shardload.memory.mapped import mapped_files
from shardload.shards.pantry import Pantry
from shardload_native.library import load


@pytest.fixture(scope="session")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose vocabulary has byte tokens."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def path(work_path: Path) -> Path:
    """A small model of which llama.cpp packs most."""
    return small_model(work_path / "model.gguf")


@pytest.fixture
def stored(path: Path, pantry: Pantry) -> Iterator[tuple[Model, PagedWeights]]:
    """The small model, which is mapped in both orders, and its pages."""
    pack_file(path, pantry)
    write_out(path.parent)
    with open_shelved(path, pantry) as model, paged(model) as weights:
        yield model, weights


@pytest.fixture
def evicted(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """What pages are asked to leave; none does."""
    asked: list[Range] = []
    monkeypatch.setattr(paged_module, "evict", lambda place: asked.append(place) or 0)
    return asked


@pytest.fixture
def model(llama_path: Path) -> Iterator[Model]:
    with Model.open([llama_path]) as opened:
        yield opened


@pytest.fixture
def new_context(model: Model) -> Iterator[Callable[..., Context]]:
    """Makes contexts of the small model, closed at the end of the test."""
    with ExitStack() as stack:

        def create(**changes: Any) -> Context:
            settings: dict[str, Any] = {"ctx_tokens": 256, "slots": 4, "threads": 1, "threads_batch": 1}
            return stack.enter_context(Context(model, ContextParams(**settings | changes)))

        yield create


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedVocabularies]:
    """Those of the models of one test, which gives all of them back."""
    vocabularies = SharedVocabularies(load())
    monkeypatch.setattr(model_module, "shared_vocabularies", lambda: vocabularies)
    yield vocabularies
    gc.collect()
    assert len(vocabularies) == 0


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Model]:
    """Opens a model with a vocabulary of its own."""

    def opened(*paths: Path) -> Model:
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer_module, "identify", lambda file: None)
            return Model.open(paths)

    return opened


@pytest.fixture
def two_paths(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of one tokenizer with other weights and sizes."""
    return write_llama(tmp_path / "a.gguf", seed=1), write_llama(tmp_path / "b.gguf", seed=2, layers=1)


@pytest.fixture
def nothing_stays_mapped() -> Iterator[None]:
    """What a test mapped is unmapped at its end."""
    before = dict(mapped_files()._files)
    yield
    assert mapped_files()._files == before
