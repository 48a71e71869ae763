from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_llama

from shardload.llama import Context, ContextParams, Model


@pytest.fixture(scope="session")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose vocabulary has byte tokens."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


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
