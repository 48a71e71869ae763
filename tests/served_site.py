"""Servers of their own process, one after the other or at once, on the same models, store and parked files.

``from served_site import Site`` works in every test file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from commands import ROOT, SHARDLOAD, announced, shardload
from packable import SIZE as SMALL
from packable import small_model

from shardload.gguf import GGUFFile
from shardload.shards.layouts import LayoutTable, Speeds, encode_tables, machine_key
from shardload.shards.pantry import packing_build

SIZE = replace(SMALL, dim=512, layers=3, heads=8, kv_heads=4, ff=1536, ctx_tokens=2048)
KIND = "Q4_K"
SEEDS = {"ada": 2, "bob": 11}
PROMPT = "ba du fo gi te " * 20
THREADS = 1
PATIENCE_SECONDS = 120.0
DYING = (SHARDLOAD[0], str(ROOT / "tests" / "dying_server.py"))


class Said(NamedTuple):
    """An answer, and how many tokens of its prompt had not to be computed."""

    text: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server that takes requests."""

    url: str
    process: subprocess.Popen[str]
    log_path: Path

    def say(self, model: str, prompt: str = PROMPT, **options: Any) -> Said:
        """What a model says greedily."""
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16, **options}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, f"{answer.text}\n{self.log()}"
        found = answer.json()
        return Said(found["choices"][0]["text"], found["usage"]["prompt_tokens_details"]["cached_tokens"])

    def do(self, action: str, model: str) -> None:
        """Load, unload or pin."""
        answer = httpx.post(f"{self.url}/models/{action}", json={"model": model}, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, answer.text

    def state(self, model: str) -> dict[str, Any]:
        """What the server tells of a model."""
        found = httpx.get(f"{self.url}/models", timeout=PATIENCE_SECONDS).json()["models"]
        return next(each for each in found if each["name"] == model)

    def log(self) -> str:
        """What it wrote for its owner."""
        return self.log_path.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens beside the requests."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < give_up, self.log()
            os.sched_yield()

    def until_packed(self, model: str) -> None:
        """Wait until a model has all from the store that it can have from there."""
        expected = packed_bytes(Path(self.state(model)["path"]))
        self.until(lambda: self.state(model)["packed_bytes"] == expected)

    def until_killed(self) -> None:
        """Wait for its sudden end."""
        assert self.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL, self.log()


class Site:
    """A folder with models, a store, parked files and a configuration, that any servers have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models, self.store, self.parked = folder / "models", folder / "store", folder / "parked"
        self.config, self._logs = folder / "shardload.toml", 0
        self.models.mkdir()
        for name, seed in SEEDS.items():
            small_model(self.model(name), KIND, SIZE, seed=seed)
            # Pages that are not on the disk yet cannot leave memory.
            with self.model(name).open("rb") as file:
                os.fsync(file.fileno())
        self.configure()
        self._prefer_packed()

    def model(self, name: str) -> Path:
        """The file of a model."""
        return self.models / f"{name}.gguf"

    def configure(self, *, store: Path | None = None, more: str = "") -> None:
        """Write the configuration."""
        self.config.write_text(
            f'folders = ["{self.models}"]\n'
            f"[engine]\nthreads = {THREADS}\nparallel = 1\nctx = {SIZE.ctx_tokens}\n"
            f'[store]\ndirectory = "{store or self.store}"\n'
            f'[parking]\ndirectory = "{self.parked}"\nmemory = 0\n{more}'
        )

    @contextmanager
    def server(self, *, dies_at: tuple[str, int] | None = None, ordinary: bool = False) -> Iterator[Server]:
        """A server for the time of the block, which may be killed at a call of a function."""
        self._logs += 1
        log_path = self.folder / f"{self._logs}.log"
        start: tuple[str, ...] = SHARDLOAD
        if dies_at is not None or ordinary:
            start = (*DYING, *map(str, dies_at or ("", 0)))
        command = [*start, "serve", "--port", "0", "--config", str(self.config)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(self.folder)}
        with (
            log_path.open("w") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT
            ) as process,
        ):
            try:
                yield Server(announced(process).url, process, log_path)
            finally:
                process.terminate()
                process.communicate(timeout=PATIENCE_SECONDS)

    def entries(self) -> list[Path]:
        """The packed tensors of the store, the largest first."""
        found = [path for path in (self.store / "packed").iterdir() if len(path.name) == 64]
        return sorted(found, key=lambda path: (-path.stat().st_size, path.name))

    def unfinished(self) -> list[Path]:
        """What a writer of the store has left behind."""
        entries = set(self.entries())
        records = {path.with_name(f"{path.name}.json") for path in entries}
        return sorted(set((self.store / "packed").iterdir()) ^ (entries | records))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Allow nobody to write in the store for the time of the block."""
        folders = [self.store, *(path for path in self.store.rglob("*") if path.is_dir())]
        files = [path for path in self.store.rglob("*") if path.is_file()]
        for path in (*files, *folders):
            path.chmod(path.stat().st_mode & ~0o222)
        try:
            yield
        finally:
            for path in (*folders, *files):
                path.chmod(path.stat().st_mode | 0o200)

    def assert_store_is_whole(self) -> None:
        """`shardload store verify` finds nothing to complain of, and nobody left anything unfinished."""
        done = shardload("store", "verify", "--store", str(self.store))
        assert done.returncode == 0, done.stderr
        assert not self.unfinished()

    def _prefer_packed(self) -> None:
        """Have the order of weights known, so that every server computes alike and none measures."""
        known = LayoutTable({KIND: Speeds({1: 1.0}, {1: 2.0})})
        path = self.folder / "shardload" / "layouts.json"
        path.parent.mkdir()
        path.write_bytes(encode_tables({machine_key(packing_build(), THREADS): known}))


def packed_bytes(path: Path) -> int:
    """How much of a model of ours llama.cpp packs: all matrices but the one that rows are looked up in."""
    with GGUFFile.open(path) as file:
        return sum(
            tensor.nbytes
            for tensor in file.tensors.values()
            if len(tensor.ne) > 1 and tensor.name != "token_embd.weight"
        )


def flip(path: Path, at: int) -> None:
    """Change a byte in place."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
