"""The models that are measured: made on first use, under one folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tools.bench.processes import check_room
from tools.make_model import Size, write_hollow_model, write_like, write_model

LETTERS = "abc"
DEFAULT_KIND = "Q8_0"
TINY_SIZE = Size(dim=64, layers=1, heads=2, kv_heads=1, ff=128)


@dataclass(frozen=True, slots=True)
class Models:
    """Where they are, how large they are and what their names begin with."""

    folder: Path
    prefix: str
    size: Size
    large: Size
    """Of the models for rows about a memory limit: beside a small one the process itself would fill it."""

    def plain(self, kind: str = DEFAULT_KIND, letter: str = "a") -> Path:
        """One of the models of a type: ``a``, ``b`` or ``c``."""
        return self._plain(self.prefix, self.size, kind, letter)

    def limited(self, kind: str, letter: str = "a") -> Path:
        """One of the models for a memory limit."""
        return self._plain("1b", self.large, kind, letter)

    def _plain(self, prefix: str, size: Size, kind: str, letter: str) -> Path:
        label = "" if kind == DEFAULT_KIND else f"{kind.lower()}-"
        path = self.folder / f"{prefix}-{label}{letter}.gguf"
        if not path.exists():
            write_model(path, size, kind=kind, seed=1 + LETTERS.index(letter))
        return path

    def tuned(self, kind: str, count: int, *, change: float) -> list[Path]:
        """Fine-tunes of ``a`` that change a share of its bytes, each in its own way."""
        base = self.plain(kind)
        paths = [base.with_name(f"{base.stem}-tuned-{index}.gguf") for index in range(count)]
        missing = [path for path in paths if not path.exists()]
        check_room(self.folder, len(missing) * base.stat().st_size, f"fine-tunes of {base.name}")
        for path in missing:
            write_like(path, base, change=change, seed=100 + paths.index(path))
        return paths

    def hollow(self, count: int) -> list[Path]:
        """Models whose weights are a hole in the file: everything but the weights is of full size."""
        folder = self.folder / f"{self.prefix}-hollow"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"idle-{index:03}.gguf" for index in range(count)]
        for path in paths:
            if not path.exists():
                write_hollow_model(path, replace(self.size, ctx_tokens=2048))
        return paths

    def tiny(self) -> Path:
        """A model of one thin layer, to measure everything but llama.cpp with."""
        path = self.folder / "tiny.gguf"
        if not path.exists():
            write_model(path, TINY_SIZE, kind="F32")
        return path
