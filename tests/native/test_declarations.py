from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from shardload_native.declarations import HEADER_DIGESTS, LLAMA_CPP_PYTHON
from shardload_native.library import check_version, load

ROOT = Path(__file__).parents[2]
HEADERS = Path(sysconfig.get_path("purelib")) / "include"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "generate_declarations", ROOT / "tools" / "generate_declarations.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_the_committed_files_are_what_the_generator_writes(generator: ModuleType) -> None:
    for name, text in generator.generate(HEADERS).items():
        assert (ROOT / "native" / "shardload_native" / name).read_text() == text


def test_the_declarations_name_a_version_that_is_supported() -> None:
    assert check_version(LLAMA_CPP_PYTHON) == LLAMA_CPP_PYTHON
    assert set(HEADER_DIGESTS) >= {"llama.h", "ggml.h", "ggml-backend.h", "ggml-cpu.h"}


def test_every_declared_function_is_in_the_libraries(generator: ModuleType) -> None:
    lib = load().lib
    for name in (generator.LLAMA + generator.GGML).split():
        assert getattr(lib, name) is not None


def test_headers_are_read_whatever_their_layout(generator: ModuleType) -> None:
    source = generator.without_macros(
        """
        /* a comment; with a semicolon */
        #define LONG(x) \\
            x;
        extern "C" {
        typedef struct thing { int32_t a; // of a
          enum kind b; } thing;
        enum kind { ONE = 1, TWO, };
        LLAMA_API DEPRECATED(void old(void), "new");
        LLAMA_API bool
            check ( const struct thing * it, uint8_t count ) ;
        typedef void (*callback)(int32_t a, void * data);
        }
        """
    )
    names = [generator.declared_name(statement) for statement in generator.statements(source)]
    assert names == [
        ("typedef", "thing"),
        ("enum", "kind"),
        None,
        ("function", "check"),
        ("typedef", "callback"),
    ]
