"""Small models of the types that llama.cpp packs, a store for them, and what they say.

``from packable import small_model, say`` works in every test file.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardload.engine.runner import Run
from shardload.gguf import GGUFFile
from shardload.llama import Context, ContextParams, Model, ModelParams
from shardload.llama.packing import pack
from shardload.llama.placed import PlacedTensor
from shardload.shards.pantry import Pantry
from shardload.shards.store import Store

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tools are beside the package, and never installed

from tools.make_model import Size, write_like, write_model

SIZE = Size(dim=256, layers=2, heads=4, kv_heads=2, ff=512, vocabulary=600, ctx_tokens=256)
LARGE = replace(SIZE, dim=1024, heads=8, kv_heads=4, ff=2048, vocabulary=2048)
MIXTURE = replace(SIZE, experts=4)
PACKED_KINDS = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4")
PLAIN_KINDS = ("F16", "Q8_0")
PROMPT = [1, *range(260, 300)]
BUILD = "a build"
PACKED = ModelParams(use_extra_bufts=True)
"""What llama.cpp packs is packed at each load, into memory of the process."""

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the hooks")


@dataclass(frozen=True)
class Said:
    """What a model answers greedily, and what it thought of the prompt and of its last token."""

    tokens: tuple[int, ...]
    after_prompt: NDArray[np.float32]
    last: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Said)
            and self.tokens == other.tokens
            and np.array_equal(self.after_prompt, other.after_prompt)
            and np.array_equal(self.last, other.last)
        )

    __hash__ = None  # type: ignore[assignment]


@functools.cache
def _model_bytes(kind: str, size: Size, seed: int) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, size, kind=kind, seed=seed)
        return path.read_bytes()


def small_model(path: Path, kind: str = "Q4_K", size: Size = SIZE, seed: int = 1) -> Path:
    """Write a model."""
    path.write_bytes(_model_bytes(kind, size, seed))
    return path


def fine_tune(path: Path, base: Path, change: float = 0.2, seed: int = 2) -> Path:
    """Write a model that has most tensors of another one."""
    write_like(path, base, change=change, seed=seed)
    return path


@contextmanager
def speaking(model: Model, threads: int = 1) -> Iterator[Callable[..., Said]]:
    """A context of a model that answers the same prompt as often as it is asked."""
    params = ContextParams(ctx_tokens=256, slots=1, threads=threads, threads_batch=threads)
    with Context(model, params) as context:

        def say(tokens: int = 6, prompt: list[int] = PROMPT) -> Said:
            context.forget(0)
            assert context.decode([Run(0, 0, prompt, "last")])
            after_prompt = context.logits(0).copy()
            said = [int(after_prompt.argmax())]
            for at in range(tokens - 1):
                assert context.decode([Run(0, len(prompt) + at, [said[-1]], "last")])
                said.append(int(context.logits(0).argmax()))
            return Said(tuple(said), after_prompt, context.logits(0).copy())

        yield say


def say(model: Model, tokens: int = 6) -> Said:
    """What a model answers in a context of its own."""
    with speaking(model) as speak:
        return speak(tokens)


def said_by(path: Path, params: ModelParams | None = None) -> Said:
    """What a model answers that is opened for it."""
    with Model.open([path], params) as model:
        return say(model)


@contextmanager
def open_pantry(folder: Path, build: str = BUILD, limit_bytes: int | None = None) -> Iterator[Pantry]:
    """A store with room."""
    with closing(Pantry(Store(folder, limit_bytes, reserve_bytes=0), build)) as pantry:
        yield pantry


def shelved(path: Path, pantry: Pantry, **params: Any) -> ModelParams:
    """Open with what there is in a store."""
    return ModelParams(use_extra_bufts=True, shelf=pantry.shelf([path]), **params)


def open_shelved(path: Path, pantry: Pantry, **params: Any) -> Model:
    """A model that is opened with what there is in a store."""
    return Model.open([path], shelved(path, pantry, **params))


def pack_file(path: Path, pantry: Pantry) -> int:
    """Open, pack and close; the bytes that were packed."""
    with open_shelved(path, pantry) as model:
        return pack(model, pantry)


def learn(path: Path, pantry: Pantry) -> None:
    """Let the index of contents know a file."""
    with GGUFFile.open(path) as file:
        assert pantry.digests_of(file) is not None


def stored_bytes(model: Model) -> int:
    """How much of a model is mapped from a store."""
    stored = [placed.packing.stored for placed in model.tensors if placed.packing is not None]
    return sum(place.length for place in stored if place is not None)


def smallest(model: Model) -> PlacedTensor:
    """The tensor by which a load finds out whether what is stored is what llama.cpp packs."""
    return min((placed for placed in model.tensors if placed.packing), key=lambda placed: placed.file.length)


def rename_over(path: Path, other: Path) -> None:
    """Rename a file of the same size over another, with the time of that one."""
    before, fresh = path.stat(), path.with_suffix(".fresh")
    shutil.copyfile(other, fresh)
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(fresh, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
