"""A load that llama.cpp does around what is in memory already: mapped files and packed tensors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shardload import memory
from shardload.llama.placed import Packing, PlacedTensor
from shardload.memory import MappedFile, Range
from shardload.shards.places import FilePlace
from shardload_native.tensors import Tensor

logger = logging.getLogger("shardload.llama")


class Shelf(Protocol):
    """Knows where the tensors of one model file can be had; asked on the loading thread."""

    def packed(self, tensor: str, type_name: str, ne: tuple[int, ...], buffer_type: str) -> FilePlace | None:
        """Where its packed bytes are stored; None where they are not."""

    def lent(self, tensor: str) -> FilePlace | None:
        """Where another file has the same bytes, to be shared with its models; None to use the own ones."""

    def loaded(self) -> None:
        """The load is over: what was found is in use."""

    def distrust(self) -> None:
        """What was packed for this model is not what llama.cpp would pack now: forget it."""


@dataclass(slots=True)
class Loading:
    """The host of one load: brings what there is, and notes where everything is."""

    shelf: Shelf | None
    files: list[MappedFile] = field(default_factory=list)
    tensors: list[PlacedTensor] = field(default_factory=list)
    _plain_buffer: int = 0
    _addresses: dict[Path, MappedFile] = field(default_factory=dict)

    def map_file(self, descriptor: int, length: int) -> int | None:
        """Hand out the process's own mapping of a file."""
        file = memory.mapped_files().open(descriptor)
        self.files.append(file)
        return file.address if file.length == length else None

    def mapped(self, tensor: Tensor) -> None:
        """Note a tensor that is read from its file, or from one that has the same bytes."""
        data, buffer, _ = tensor.words
        self._plain_buffer = self._plain_buffer or buffer
        nbytes = tensor.nbytes
        place = self._lent(tensor.name, nbytes) or Range(data, nbytes)
        if place.address != data:
            tensor.data = place.address
        self.tensors.append(_placed(tensor, place))

    def copying(self, tensor: Tensor, source: int) -> bool:
        """Note a tensor that llama.cpp packs, and bring its packed bytes if there are any."""
        name, nbytes = tensor.name, tensor.nbytes
        data, buffer, extra = tensor.words
        private = Range(data, tensor.copied_bytes)
        packing = Packing(tensor.buffer_type, private, private, buffer, extra)
        file = self._lent(name, nbytes) or Range(source, nbytes)
        placed = _placed(tensor, file, packing)
        self.tensors.append(placed)
        packing.place = self._packed(placed, packing) or private
        tensor.data = packing.place.address
        return not packing.is_private

    def finish(self) -> None:
        """Complete what is known of each tensor when the load is over, and check what was brought."""
        brought: list[tuple[PlacedTensor, Packing]] = []
        for placed in self.tensors:
            placed.plain_buffer = self._plain_buffer
            if placed.packing is not None and not placed.packing.is_private:
                brought.append((placed, placed.packing))
        if not brought or _is_what_llama_packs(*min(brought, key=lambda pair: pair[0].file.length)):
            if self.shelf is not None:
                self.shelf.loaded()
            return
        logger.warning("stored packed weights are not what this llama.cpp packs: they are packed anew")
        if self.shelf is not None:
            self.shelf.distrust()
        for placed, packing in brought:
            packing.place = packing.private
            _pack_privately(placed, packing)

    def release(self) -> None:
        """Let go of the mappings; llama.cpp must have freed the model."""
        for file in self.files:
            file.release()
        self.files.clear()

    def _lent(self, name: str, nbytes: int) -> Range | None:
        place = self.shelf.lent(name) if self.shelf is not None else None
        return self._map(place) if place is not None and place.nbytes == nbytes else None

    def _packed(self, placed: PlacedTensor, packing: Packing) -> Range | None:
        if self.shelf is None:
            return None
        place = self.shelf.packed(placed.name, placed.type_name, placed.ne, packing.buffer_type)
        return self._map(place) if place is not None and place.nbytes == packing.private.length else None

    def _map(self, place: FilePlace) -> Range | None:
        file = self._addresses.get(place.path)
        if file is None:
            try:
                file = memory.mapped_files().open(place.path)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be mapped: %s", place.path, error)
                return None
            self._addresses[place.path] = file
            self.files.append(file)
        if place.offset + place.nbytes > file.length:
            return None
        return Range(file.address + place.offset, place.nbytes)


def _placed(tensor: Tensor, file: Range, packing: Packing | None = None) -> PlacedTensor:
    return PlacedTensor(tensor, tensor.name, tensor.type_name, tensor.type_code, tensor.ne, file, packing)


def _is_what_llama_packs(placed: PlacedTensor, packing: Packing) -> bool:
    """Pack one tensor and compare; leaves it as it was."""
    _pack_privately(placed, packing)
    placed.tensor.data = packing.place.address
    same = memory.view(packing.private) == memory.view(packing.place)
    memory.discard(packing.private)
    return same


def _pack_privately(placed: PlacedTensor, packing: Packing) -> None:
    """Have llama.cpp pack a tensor into its own memory after all."""
    placed.tensor.data = packing.private.address
    placed.tensor.copy_from(placed.file.address, placed.file.length)
