"""A load that llama.cpp does around what is in memory already: mapped files and packed tensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardload import memory
from shardload.llama.placed import Packing, PlacedTensor
from shardload.memory import MappedFile, Range
from shardload.shards.contents import FilePlace
from shardload.shards.hold import Hold
from shardload.shards.identity import FileIdentity
from shardload_native.tensors import Tensor

if TYPE_CHECKING:
    from shardload.shards.pantry import Shelf

logger = logging.getLogger("shardload.llama")


@dataclass(slots=True)
class Loading:
    """The host of one load: brings what there is, and notes where everything is."""

    shelf: Shelf | None
    packs: bool = True
    """Whether llama.cpp packs what is not stored; else it is read as the file has it."""
    files: list[MappedFile] = field(default_factory=list)
    tensors: list[PlacedTensor] = field(default_factory=list)
    identities: list[FileIdentity] = field(default_factory=list)
    """What the model's own files were when they were mapped."""
    data_starts: dict[int, int] = field(default_factory=dict)
    """Where the first tensor of each of the model's own files is mapped, by where the file is mapped."""
    _hold: Hold | None = None
    """Keeps in the store what was found there."""
    _plain_buffer: int = 0
    _others: dict[tuple[Path, FileIdentity | None], MappedFile | None] = field(default_factory=dict)
    """Files that tensors were found in, by what they must be; None for one that could not be mapped."""

    def map_file(self, descriptor: int, length: int) -> int | None:
        """Hand out the process's own mapping of a file."""
        identity = FileIdentity.of(descriptor)
        self.identities.append(identity)
        if self.shelf is not None and not self.shelf.describes(identity):
            logger.info("a model file was replaced while it was opened: what is stored for it is not used")
            self.shelf = None
        file = memory.mapped_files().open(descriptor)
        self.files.append(file)
        return file.address if file.length == length else None

    def mapped(self, tensor: Tensor) -> None:
        """Note a tensor that is read from its file, or from one that has the same bytes."""
        data, buffer, extra = tensor.words
        self._plain_buffer = self._plain_buffer or buffer
        self._note_own(data)
        placed = self._placed(tensor, data)
        tensor.point(placed.file.address, buffer, extra)
        self.tensors.append(placed)

    def copying(self, tensor: Tensor, source: int) -> bool:
        """Note a tensor that llama.cpp packs, and bring its packed bytes if there are any."""
        data, buffer, extra = tensor.words
        if not self._note_own(source) or not extra:
            return False  # made up by llama.cpp, or copied as it is
        private = Range(data, tensor.copied_bytes)
        packing = Packing(tensor.buffer_type, Range(source, tensor.nbytes), private, None, buffer, extra)
        placed = self._placed(tensor, source, packing)
        packing.place = self._packed(placed, packing)
        if packing.place is None and self.packs:
            packing.place = private
        self.tensors.append(placed)
        return not packing.is_private

    def finish(self) -> None:
        """Complete what is known of each tensor when the load is over, and check what was brought."""
        brought = [
            placed
            for placed in self.tensors
            if placed.packing is not None and placed.packing.stored is not None
        ]
        if not _are_what_llama_packs(brought):
            logger.warning("stored packed weights are not what this llama.cpp packs: they are packed anew")
            if self.shelf is not None:
                self.shelf.distrust()
            for placed in brought:
                self._do_without(placed)
        elif self.shelf is not None:
            self._hold = self.shelf.loaded()
        for placed in self.tensors:
            placed.plain_buffer = self._plain_buffer
            if placed.packing is not None and placed.packing.place is None and not self._plain_buffer:
                self._do_without(placed, packs=True)
            placed.show("packed")

    def release(self) -> None:
        """Let go of the mappings, and of the store; llama.cpp must have freed the model."""
        while self.files:
            self.files.pop().release()
        for hold in (self._hold, *(placed.packing.hold for placed in self.tensors if placed.packing)):
            if hold is not None:
                hold.close()

    def _do_without(self, placed: PlacedTensor, *, packs: bool = False) -> None:
        """Let a tensor be as if nothing was stored of it."""
        if placed.packing is not None:
            placed.packing.place = None
            if self.packs or packs:
                placed.pack()
                placed.packing.place = placed.packing.private

    def _note_own(self, address: int) -> bool:
        """Note where a tensor is in the model's own files; False where it is in none."""
        for file in self.files:
            if file.address <= address < file.address + file.length:
                start = self.data_starts.get(file.address, address)
                self.data_starts[file.address] = min(start, address)
                return True
        return False

    def _placed(self, tensor: Tensor, address: int, packing: Packing | None = None) -> PlacedTensor:
        name, nbytes = tensor.name, tensor.nbytes
        file = self._lent(name, nbytes) or Range(address, nbytes)
        return PlacedTensor(tensor, name, tensor.type_name, tensor.type_code, tensor.ne, file, packing)

    def _lent(self, name: str, nbytes: int) -> Range | None:
        place = self.shelf.lent(name) if self.shelf is not None else None
        return self._map(place) if place is not None and place.nbytes == nbytes else None

    def _packed(self, placed: PlacedTensor, packing: Packing) -> Range | None:
        if self.shelf is None:
            return None
        place = self.shelf.packed(placed.name, placed.type_name, placed.ne, packing.buffer_type)
        return self._map(place) if place is not None and place.nbytes == packing.private.length else None

    def _map(self, place: FilePlace) -> Range | None:
        wanted = place.path, place.identity
        if wanted not in self._others:
            self._others[wanted] = file = _mapped(place)
            self.files += [file] if file is not None else []
        file = self._others[wanted]
        if file is None or place.offset + place.nbytes > file.length:
            return None
        return Range(file.address + place.offset, place.nbytes)


def _mapped(place: FilePlace) -> MappedFile | None:
    try:
        descriptor = os.open(place.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            if place.identity is None or place.identity.same(FileIdentity.of(descriptor)):
                return memory.mapped_files().open(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be mapped: %s", place.path, error)
    return None


def _are_what_llama_packs(brought: Sequence[PlacedTensor]) -> bool:
    """Pack the smallest of some stored tensors, and compare."""
    placed = min(brought, key=lambda placed: placed.file.length, default=None)
    if placed is None or placed.packing is None or placed.packing.stored is None:
        return True
    placed.pack()
    same = memory.same_bytes(placed.packing.private, placed.packing.stored)
    memory.discard(placed.packing.private)
    return same
