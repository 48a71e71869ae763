"""Where a loaded library keeps the addresses of the functions it imports (Linux, 64-bit ELF).

The slots of the global offset table are found by reading the library's file, not its memory, so that a
file we do not understand costs an exception and never a crash.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# R_*_GLOB_DAT and R_*_JUMP_SLOT of elf.h: relocations that hold a function's address.
FUNCTION_RELOCATIONS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
PT_LOAD, PT_DYNAMIC = 1, 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
RELOCATION_BYTES = SYMBOL_BYTES = 24


class SlotsNotFound(Exception):
    """Raised when a library's slots cannot be found; says why. The caller loads without them."""


@dataclass(frozen=True, slots=True)
class Region:
    """One line of /proc/self/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str


def read_regions() -> list[Region]:
    """The mappings of this process."""
    regions = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            addresses, permissions, offset, device, inode, *path = line.rstrip("\n").split(maxsplit=5)
            start, end = (int(part, 16) for part in addresses.split("-"))
            name = path[0] if path else ""
            regions.append(Region(start, end, permissions, int(offset, 16), device, int(inode), name))
    return regions


def find_slots(library: Path, symbols: tuple[str, ...]) -> dict[str, list[int]]:
    """The addresses in memory of the slots through which ``library`` calls each symbol.

    The library must be loaded. Raises SlotsNotFound.
    """
    machine = platform.machine()
    if machine not in FUNCTION_RELOCATIONS:
        raise SlotsNotFound(f"no knowledge of {machine}")
    try:
        real = library.resolve(strict=True)
        inode = os.stat(real).st_ino
        regions = [region for region in read_regions() if region.inode == inode and region.path == str(real)]
        if not regions:
            raise SlotsNotFound(f"{library.name} is not loaded, or its file was replaced")
        with open(real, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            elf = ElfImage(image, machine)
            base = min(region.start for region in regions if region.offset == 0) - elf.first_address
            found = elf.function_slots(symbols)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise SlotsNotFound(f"{library.name}: {type(error).__name__}: {error}") from error
    return {symbol: [base + slot for slot in slots] for symbol, slots in found.items()}


class ElfImage:
    """The dynamic section of a 64-bit little-endian ELF file, as far as imports need it."""

    def __init__(self, image: mmap.mmap | bytes, machine: str) -> None:
        self._image = image
        self._machine = machine
        if image[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", image, 18)[0] != ELF_MACHINE[machine]:
            raise ValueError(f"not a 64-bit ELF file for {machine}")
        (table,) = struct.unpack_from("<Q", image, 32)
        entry_bytes, count = struct.unpack_from("<HH", image, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", image, table + at * entry_bytes) for at in range(count)]
        self._segments = [
            (address, offset, file_bytes)
            for kind, _, offset, address, _, file_bytes, _, _ in headers
            if kind == PT_LOAD
        ]
        self.first_address = min(address - offset for address, offset, _ in self._segments if offset == 0)
        self._dynamic = self._read_dynamic([header for header in headers if header[0] == PT_DYNAMIC])

    def _read_dynamic(self, headers: list[tuple[int, ...]]) -> dict[int, int]:
        (header,) = headers
        offset, length = header[2], header[5]
        entries: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<qQ", self._image[offset : offset + length // 16 * 16]):
            if tag == 0:
                break
            entries.setdefault(tag, value)
        return entries

    def _file_offset(self, address: int) -> int:
        for start, offset, length in self._segments:
            if start <= address < start + length:
                return int(offset + address - start)
        raise ValueError(f"address {address:#x} is in no segment")

    def function_slots(self, symbols: tuple[str, ...]) -> dict[str, list[int]]:
        """The link-time addresses of each symbol's slots; a symbol that is not imported has none."""
        wanted = {symbol.encode(): symbol for symbol in symbols}
        found: dict[str, list[int]] = {symbol: [] for symbol in symbols}
        symbol_table = self._file_offset(self._dynamic[DT_SYMTAB])
        strings = self._file_offset(self._dynamic[DT_STRTAB])
        longest = max(map(len, wanted)) + 1
        for slot, symbol in self._imports():
            (name,) = struct.unpack_from("<I", self._image, symbol_table + symbol * SYMBOL_BYTES)
            text = self._image[strings + name : strings + name + longest].split(b"\0", 1)[0]
            if text in wanted:
                found[wanted[text]].append(slot)
        return found

    def _imports(self) -> Iterator[tuple[int, int]]:
        """(slot address, symbol number) of each function relocation."""
        kinds = FUNCTION_RELOCATIONS[self._machine]
        for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
            if table not in self._dynamic:
                continue
            offset = self._file_offset(self._dynamic[table])
            length = self._dynamic[size] // RELOCATION_BYTES * RELOCATION_BYTES
            for slot, information, _ in struct.iter_unpack("<QQq", self._image[offset : offset + length]):
                if information & 0xFFFFFFFF in kinds and information >> 32:
                    yield slot, information >> 32
