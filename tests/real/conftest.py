"""Small models of every type, what llama.cpp's own load says of them, and a store to pack them in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from plain_load import PlainLoad

from shardload.demo import demo_folder
from shardload.llama import Model, ModelParams
from shardload.llama.packing import pack
from shardload.shards.pantry import Pantry, packing_build
from shardload.shards.store import Store

# The tools are beside the package, and never installed.
sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.make_model import Size, write_like, write_model

SIZE = Size(dim=256, layers=3, heads=8, kv_heads=2, ff=512, vocabulary=600, ctx_tokens=512)
MIXTURE = replace(SIZE, experts=8)
TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4")
MIXTURES = ("Q4_0", "Q4_K", "MXFP4")
NAMES = ("fable", *TYPES, *(f"experts-{kind}" for kind in MIXTURES))


@pytest.fixture(scope="session")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by name: one that was trained, one of each type, mixtures of experts."""
    folder = tmp_path_factory.mktemp("real")
    paths = {name: folder / f"{name}.gguf" for name in NAMES[1:]}
    for name, path in paths.items():
        size = MIXTURE if name.startswith("experts") else SIZE
        write_model(path, size, kind=name.removeprefix("experts-"))
    return {"fable": demo_folder() / "fable.gguf", **paths}


@pytest.fixture(params=NAMES)
def model_path(request: pytest.FixtureRequest, model_paths: dict[str, Path]) -> Path:
    """Each model in turn."""
    return model_paths[request.param]


@pytest.fixture
def fine_tune(model_path: Path, tmp_path: Path) -> Path:
    """A model that shares most of its bytes with ``model_path``."""
    path = tmp_path / "tune.gguf"
    write_like(path, model_path, change=0.3, seed=7)
    return path


@pytest.fixture
def pantry(tmp_path: Path) -> Iterator[Pantry]:
    """A store of its own, empty."""
    with closing(Pantry(Store(tmp_path / "store", None), packing_build())) as pantry:
        yield pantry


@pytest.fixture
def fill(pantry: Pantry) -> Callable[[Path], int]:
    """Packs a model; gives the bytes that were packed, 0 for types that have no packed order here."""

    def fill_with(path: Path) -> int:
        params = ModelParams(use_extra_bufts=True, shelf=pantry.shelf([path]))
        with Model.open([path], params) as model:
            return pack(model, pantry)

    return fill_with


@pytest.fixture
def packed_bytes(fill: Callable[[Path], int], model_path: Path) -> int:
    """The model is in the store; bytes of it that have a packed order."""
    return fill(model_path)


@pytest.fixture(scope="session")
def plain_loads() -> Iterator[dict[Path, PlainLoad]]:
    """What was loaded plainly so far."""
    loads: dict[Path, PlainLoad] = {}
    yield loads
    for load in loads.values():
        load.close()


@pytest.fixture
def plain(plain_loads: dict[Path, PlainLoad], model_path: Path) -> PlainLoad:
    """The judge of what the model may say."""
    if model_path not in plain_loads:
        plain_loads[model_path] = PlainLoad(model_path)
    return plain_loads[model_path]
