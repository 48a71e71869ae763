from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardload_native import build
from shardload_native.build import packing_build
from shardload_native.library import load, new_ffi


@dataclass
class Libraries:
    """A llama.cpp as far as its packing goes."""

    folder: Path
    version: str = "0.3.36"
    ggml_version: str = "0.25.3"
    features: bytes = b"AVX2 = 1"

    def __post_init__(self) -> None:
        self.ffi = new_ffi("")
        self.library_path = self.folder / "libllama.so"
        self.lib: Any = self

    def llama_print_system_info(self) -> Any:
        return self.ffi.new("char[]", self.features)


@pytest.fixture
def libraries(tmp_path: Path) -> Libraries:
    (tmp_path / "libggml-cpu.so.0").write_bytes(b"kernels")
    (tmp_path / "libggml-cpu.so").symlink_to("libggml-cpu.so.0")
    (tmp_path / "libggml-base.so").write_bytes(b"base")
    return Libraries(tmp_path)


def key_of(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(build, "load", lambda: libraries)
    return packing_build.__wrapped__()


def test_this_build_has_one_key() -> None:
    found = packing_build()
    assert len(found) == 32
    assert found == packing_build.__wrapped__()
    assert load().library_path.exists()


def test_whatever_decides_packed_bytes_changes_the_key(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key_of(libraries, monkeypatch)]
    libraries.features = b"AVX512 = 1"
    keys.append(key_of(libraries, monkeypatch))
    libraries.version = "0.3.37"
    keys.append(key_of(libraries, monkeypatch))
    libraries.ggml_version = "0.26"
    keys.append(key_of(libraries, monkeypatch))
    (libraries.folder / "libggml-cpu.so.0").write_bytes(b"kernelz")
    keys.append(key_of(libraries, monkeypatch))
    (libraries.folder / "libggml-cpu-haswell.so").write_bytes(b"more kernels")
    keys.append(key_of(libraries, monkeypatch))
    assert len(set(keys)) == len(keys)


def test_what_does_not_pack_changes_nothing(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(libraries, monkeypatch)
    (libraries.folder / "libggml-base.so").write_bytes(b"other")
    assert key_of(libraries, monkeypatch) == before
