"""The llama.cpp that llama-cpp-python installs, found, checked and opened through cffi."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shardload.errors import UnsupportedLlama
from shardload_native.declarations import CDEF
from shardload_native.interface import LlamaInterface
from shardload_native.layout import check_layout
from shardload_native.log import LogRouter

OLDEST, BELOW = "0.3.36", "0.3.37"

# A function that is cached alone may still run on two threads at once.
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Llama:
    """The opened libraries: one per process, shared by all handles, never closed."""

    ffi: Any
    lib: LlamaInterface
    version: str
    library_path: Path
    log: LogRouter

    @property
    def ggml_version(self) -> str:
        return text(self.ffi, self.lib.ggml_version())


def text(ffi: Any, pointer: Any) -> str:
    """A C string as str; empty for NULL."""
    return "" if pointer == ffi.NULL else bytes(ffi.string(pointer)).decode("utf-8", "replace")


def load() -> Llama:
    """Open llama.cpp, once per process, whichever threads ask.

    Raises UnsupportedLlama when llama-cpp-python is missing, of another version, or laid out differently.
    """
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> Llama:
    package = _package_directory()
    version = check_version(_installed_version())
    ffi = new_ffi(CDEF)
    check_layout(ffi, package)
    directory = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or package / "lib")
    if sys.platform == "win32":
        os.add_dll_directory(str(directory))
    try:
        libraries = [
            ffi.dlopen(str(_library_file(directory, name))) for name in ("llama", "ggml", "ggml-base")
        ]
    except OSError as error:
        raise UnsupportedLlama(f"llama-cpp-python {version} does not load: {error}") from error
    lib = cast(LlamaInterface, libraries[0] if sys.platform == "linux" else _FirstOf(libraries))
    log = LogRouter(ffi, lib)
    lib.llama_backend_init()
    return Llama(ffi, lib, version, _library_file(directory, "llama"), log)


def new_ffi(declarations: str) -> Any:
    """A cffi instance that knows some C declarations; untyped, as all that comes from it."""
    import cffi

    ffi: Any = cast(Any, cffi).FFI()
    ffi.cdef(declarations)
    return ffi


def check_version(version: str) -> str:
    """The version itself when its structures are known; raises UnsupportedLlama otherwise."""
    if not _parts(OLDEST) <= _parts(version) < _parts(BELOW):
        raise UnsupportedLlama(
            f"llama-cpp-python {version} is installed and shardload knows {OLDEST} up to, not including, "
            f"{BELOW}: pip install 'llama-cpp-python>={OLDEST},<{BELOW}'"
        )
    return version


def _parts(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        numbers.append(int(digits) if digits else 0)
    return tuple(numbers)


def _package_directory() -> Path:
    specification = importlib.util.find_spec("llama_cpp")
    if specification is None or not specification.submodule_search_locations:
        raise UnsupportedLlama(
            f"llama-cpp-python is not installed: pip install 'llama-cpp-python>={OLDEST},<{BELOW}'"
        )
    return Path(next(iter(specification.submodule_search_locations)))


def _installed_version() -> str:
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        import llama_cpp  # a copy without metadata: it knows its own version

        return str(llama_cpp.__version__)


def _library_file(directory: Path, name: str) -> Path:
    candidates = {
        "win32": (f"{name}.dll", f"lib{name}.dll"),
        "darwin": (f"lib{name}.dylib", f"lib{name}.so"),
    }.get(sys.platform, (f"lib{name}.so",))
    for candidate in candidates:
        if (directory / candidate).exists():
            return directory / candidate
    raise UnsupportedLlama(f"llama-cpp-python has no {candidates[0]} in {directory}")


class _FirstOf:
    """Several libraries as one: where symbols are looked up in one file only, ask each in turn."""

    def __init__(self, libraries: list[Any]) -> None:
        self._libraries = libraries

    def __getattr__(self, name: str) -> Any:
        for library in self._libraries:
            try:
                found = getattr(library, name)
            except AttributeError:
                continue
            setattr(self, name, found)
            return found
        raise AttributeError(name)
