"""Loads in the middle of which something is raised where llama.cpp calls Python."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from packable import PACKED, linux_only, said_by

from shardload.llama import Model
from shardload.llama import model as model_module
from shardload.llama.files import load_files
from shardload.llama.loading import Loading
from shardload.memory.mapped import mapped_files
from shardload_native.callbacks import keep
from shardload_native.log import LogRouter


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a program of its own: who runs in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@linux_only
@pytest.mark.usefixtures("nothing_stays_mapped", "ctrl_c")
@pytest.mark.parametrize("shared", [False, True], ids=["own vocabulary", "lent vocabulary"])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(LogRouter, "_take", 1), (Loading, "map_file", 1), (Loading, "mapped", 2), (Loading, "copying", 2)],
)
def test_ctrl_c_ends_a_load(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int, shared: bool
) -> None:
    left, really = at, getattr(owner, name)

    def interrupted(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            signal.raise_signal(signal.SIGINT)
        return really(*arguments)

    expected = said_by(path, PACKED)
    with Model.open([path], PACKED) if shared else nullcontext():
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Model.open([path], PACKED)
        assert left <= 0
        monkeypatch.undo()
        assert said_by(path, PACKED) == expected


@linux_only
def test_a_load_in_which_something_failed_late_is_given_back(
    llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = dict(mapped_files()._files)

    def load_late(*arguments: Any) -> Any:
        pointer = load_files(*arguments)
        keep(None, KeyboardInterrupt(), None)
        return pointer

    monkeypatch.setattr(model_module, "load_files", load_late)
    with pytest.raises(KeyboardInterrupt):
        Model.open([llama_path])
    assert mapped_files()._files == mapped
