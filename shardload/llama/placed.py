"""Where the tensors of an open model are, and moving them between two orders of their bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from shardload.memory import Range
from shardload.shards.hold import Hold
from shardload.shards.layouts import Layout
from shardload_native.tensors import Tensor


@dataclass(slots=True, eq=False)
class Packing:
    """The packed order of one tensor: the order that llama.cpp's kernels like better than the file's."""

    buffer_type: str
    """Its name."""
    source: Range
    """What they are made from: the bytes in the model's own file, wherever those are read for steps."""
    private: Range
    """Where llama.cpp keeps, or would keep, the packed bytes in memory of its own."""
    place: Range | None
    """Where they are: there, or in a mapped file; None where nobody has packed them yet."""
    buffer: int
    extra: int
    hold: Hold | None = None
    """Keeps in the store what was written after the load, for many tensors of the model at once."""

    @property
    def is_private(self) -> bool:
        """Whether they are in memory of the process, and in no file."""
        return self.place == self.private

    @property
    def stored(self) -> Range | None:
        """Where a file has them."""
        return None if self.is_private else self.place


@dataclass(slots=True, eq=False)
class PlacedTensor:
    """One tensor of an open model; ``file`` has its bytes in the order of its quantisation."""

    tensor: Tensor
    name: str
    type_name: str
    type_code: int
    ne: tuple[int, ...]
    file: Range
    packing: Packing | None = None
    """None for a tensor that has no packed order."""
    plain_buffer: int = 0
    """The buffer that tells kernels of the file's order; 0 where none is known."""

    def show(self, layout: Layout) -> None:
        """Let llama.cpp read it in an order if it has that; nothing may compute on it meanwhile."""
        packing = self.packing
        if packing is None:
            return
        if layout == "packed" and packing.place is not None:
            self.tensor.point(packing.place.address, packing.buffer, packing.extra)
        elif self.plain_buffer:
            self.tensor.point(self.file.address, self.plain_buffer, 0)

    def pack(self) -> None:
        """Have llama.cpp write the packed bytes to its private memory; what is computed goes on as it is."""
        packing = self.packing
        if packing is not None:
            own = self.tensor.elsewhere(packing.private.address, packing.buffer, packing.extra)
            # Never from a file that lends: it is stored as what the model's own file is known to contain.
            own.copy_from(packing.source.address, packing.source.length)


class Layouts:
    """The order of bytes that the packed tensors of one model show; changed between steps only.

    Steps are told apart by `computing`. Contexts of one model may compute at the same time: the second one
    goes on with what the first one chose. Any thread.
    """

    def __init__(self, tensors: Iterable[PlacedTensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.packing is not None]
        self._lock = threading.Lock()
        self._steps = 0
        self._moves: list[tuple[Sequence[tuple[PlacedTensor, Range]], threading.Event]] = []
        self.shown: Layout = "packed"
        self.both = bool(self._tensors) and all(tensor.plain_buffer for tensor in self._tensors)
        """Whether there is anything to choose between."""

    @contextmanager
    def computing(self, wanted: Layout) -> Iterator[None]:
        """Show an order while the body computes, unless another step computes with another one."""
        with self._lock:
            if not self._steps:
                self._move()
                if self.both and wanted != self.shown:
                    self._show(wanted)
            self._steps += 1
        try:
            yield
        finally:
            with self._lock:
                self._steps -= 1
                if not self._steps:
                    self._move()

    def move(self, places: Sequence[tuple[PlacedTensor, Range]]) -> threading.Event:
        """Have the packed bytes of some tensors read from elsewhere; the event tells when that is so.

        It is so at once unless a step is being computed, and when that ends otherwise.
        """
        done = threading.Event()
        with self._lock:
            self._moves.append((places, done))
            if not self._steps:
                self._move()
        return done

    def _move(self) -> None:
        for places, done in self._moves:
            for placed, place in places:
                if placed.packing is not None:
                    placed.packing.place = place
                if self.shown == "packed":
                    placed.show("packed")
            done.set()
        self._moves.clear()

    def _show(self, layout: Layout) -> None:
        for tensor in self._tensors:
            tensor.show(layout)
        self.shown = layout
