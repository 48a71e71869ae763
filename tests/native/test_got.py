from __future__ import annotations

import contextlib
import platform
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload_native.got import ElfImage, SlotsNotFound, find_slots, read_regions
from shardload_native.library import load

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF is for Linux")


def test_slots_of_the_loaded_library() -> None:
    slots = find_slots(load().library_path, ("mmap", "munmap", "no_such_function"))
    assert slots["mmap"]
    assert slots["munmap"]
    assert slots["no_such_function"] == []
    regions = read_regions()
    for slot in [*slots["mmap"], *slots["munmap"]]:
        (region,) = (region for region in regions if region.start <= slot < region.end)
        assert Path(region.path).samefile(load().library_path)


def test_libraries_that_are_not_loaded(tmp_path: Path) -> None:
    copy = tmp_path / "libllama.so"
    copy.write_bytes(load().library_path.read_bytes())
    with pytest.raises(SlotsNotFound, match="not loaded"):
        find_slots(copy, ("mmap",))
    with pytest.raises(SlotsNotFound, match="FileNotFoundError"):
        find_slots(tmp_path / "absent.so", ("mmap",))


def test_machines_we_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SlotsNotFound, match="riscv64"):
        find_slots(load().library_path, ("mmap",))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + b"\0" * 64, b"MZ" * 100])
def test_files_that_are_no_elf(content: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        ElfImage(content, platform.machine())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_headers_cost_an_exception_at_most(data: st.DataObject) -> None:
    content = bytearray(load().library_path.read_bytes())
    dynamic = content.find(struct.pack("<qQ", 1, 1))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 1023)) if dynamic < 0 or data.draw(st.booleans()) else dynamic
        content[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, KeyError, IndexError, OverflowError, struct.error):
        slots = ElfImage(bytes(content), platform.machine()).function_slots(("mmap",))
        assert set(slots) == {"mmap"}
