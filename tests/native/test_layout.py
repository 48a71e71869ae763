from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from shardload.errors import UnsupportedLlama
from shardload_native.declarations import CDEF, HEADER_DIGESTS
from shardload_native.layout import check_layout, compare_structures, headers_match
from shardload_native.library import new_ffi

HEADERS = Path(sysconfig.get_path("purelib")) / "include"


def test_the_installed_structures_are_ours() -> None:
    assert headers_match(HEADERS)
    assert compare_structures(new_ffi(CDEF)) == []


def test_changed_or_absent_headers_are_noticed(tmp_path: Path) -> None:
    assert not headers_match(tmp_path)
    for name in HEADER_DIGESTS:
        shutil.copy(HEADERS / name, tmp_path)
    assert headers_match(tmp_path)
    (tmp_path / "llama.h").write_text((tmp_path / "llama.h").read_text() + "\n")
    assert not headers_match(tmp_path)


def test_without_headers_the_structures_are_compared(tmp_path: Path) -> None:
    check_layout(new_ffi(CDEF), tmp_path / "llama_cpp")
    other = CDEF.replace("uint32_t n_ubatch;", "uint64_t n_ubatch;").replace("    bool check_tensors;\n", "")
    with pytest.raises(UnsupportedLlama) as caught:
        check_layout(new_ffi(other), tmp_path / "llama_cpp")
    assert "llama_context_params.n_ubatch" in str(caught.value)
    assert "llama_model_params.use_extra_bufts" in str(caught.value)
