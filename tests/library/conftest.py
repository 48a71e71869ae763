from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def write_model(path: Path, *, architecture: str = "llama", blocks: int = 2, **values: Any) -> Path:
    """Write a header like a small model's, with ``values`` over the defaults; ``__`` stands for dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "context_length": 512,
        "embedding_length": 64,
        "block_count": blocks,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    keys = {f"{architecture}.{key}": value for key, value in numbers.items()}
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    for key, value in keys.items():
        _add(writer, key, value)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Sequence):
        writer.add_array(key, value)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model file at a path relative to ``tmp_path``."""

    def make(name: str, **values: Any) -> Path:
        return write_model(tmp_path / name, **values)

    return make
