from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardload.errors import UnsupportedLlama
from shardload_native import library
from shardload_native.library import check_version, load


@pytest.mark.parametrize("version", ["0.3.36", "0.3.36.post1", "0.3.36+cu124"])
def test_versions_we_know(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["0.3.35", "0.3.37", "0.4.0", "0.2.90", "1.0", "0.3.37rc1"])
def test_versions_we_do_not_know(version: str) -> None:
    with pytest.raises(UnsupportedLlama) as caught:
        check_version(version)
    assert version in str(caught.value)
    assert "0.3.36" in str(caught.value)
    assert "0.3.37" in str(caught.value)


def test_loading_happens_once() -> None:
    assert load() is load()
    assert load().library_path.exists()
    assert load().ggml_version.count(".") == 2


def test_missing_llama_cpp_python_is_named() -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from shardload_native.library import load\n"
        "from shardload.errors import UnsupportedLlama\n"
        "try: load()\n"
        "except UnsupportedLlama as error: print(error)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "llama-cpp-python is not installed: pip install" in child.stdout


def test_a_directory_without_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(UnsupportedLlama, match=str(tmp_path)):
        library._load_once.__wrapped__()


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama", "ggml", "ggml-base"):
        for pattern in ("lib{}.so", "lib{}.dylib", "{}.dll"):
            (tmp_path / pattern.format(name)).write_bytes(b"not a library")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(UnsupportedLlama, match="does not load"):
        library._load_once.__wrapped__()


def test_symbols_are_looked_up_in_each_library() -> None:
    class First:
        one = 1

    class Second:
        one, two = 0, 2

    both = library._FirstOf([First(), Second()])
    assert (both.one, both.two) == (1, 2)
    with pytest.raises(AttributeError, match="three"):
        _ = both.three


def test_the_library_is_ready_quickly() -> None:
    code = (
        "import sys; from shardload_native.library import load; load(); sys.exit('llama_cpp' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
