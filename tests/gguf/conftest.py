from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fuzzer() -> ModuleType:
    """The fuzzer's module, whose builders of bytes the tests use too."""
    spec = importlib.util.spec_from_file_location("fuzz_gguf", ROOT / "tools" / "fuzz_gguf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file from raw keys and tensors, right or wrong."""

    def write_file(
        keys: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        *,
        data: int = 0,
        version: int = 3,
        counts: tuple[int, int] | None = None,
        name: str = "model.gguf",
    ) -> Path:
        tensor_count, key_count = counts or (len(tensors), len(keys))
        head = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, key_count)
        head += b"".join(keys) + b"".join(tensors)
        path = tmp_path / name
        path.write_bytes(head + b"\0" * (-len(head) % 32 + data))
        return path

    return write_file


@pytest.fixture
def refused(write: Callable[..., Path]) -> Callable[..., Any]:
    """Write a file that must be refused; returns the reason."""
    from shardload.errors import CorruptGGUF
    from shardload.gguf import GGUFFile

    def refuse(*arguments: Any, error: type[Exception] = CorruptGGUF, **options: Any) -> str:
        path = write(*arguments, **options)
        with pytest.raises(error) as caught:
            GGUFFile(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value)

    return refuse
