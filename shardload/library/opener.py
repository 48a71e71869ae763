"""Opening and closing of models: what the manager needs of whoever does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shardload.library.entry import ModelEntry, Use
from shardload.library.estimate import Prediction

if TYPE_CHECKING:
    from shardload.engine.lane import Engine

Progress = Callable[[float], None]


class VocabLike(Protocol):
    """What the manager's users need of a vocabulary."""

    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...
    def piece(self, token: int, *, special: bool = False) -> bytes: ...
    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class WeightsHandle:
    """Open weights; ``private_bytes`` is the memory that they took beside their mapping."""

    vocab: VocabLike
    private_bytes: int
    model: Any = None
    """The opener's own."""


@dataclass(frozen=True, slots=True, eq=False)
class InstanceHandle:
    """An open context, attached to the lane."""

    engine: Engine
    ctx_tokens: int
    kv_bytes: int
    private_bytes: int
    """KV cache and compute buffers."""
    runner: Any = None
    """The opener's own."""


class Opener(Protocol):
    """Opens and closes for the manager; every method is called on the event loop and takes its own time."""

    def predict(self, entry: ModelEntry, kind: Use) -> Prediction:
        """What `open_weights` and `open_instance` will take; reads nothing."""
        ...

    async def open_weights(self, entry: ModelEntry, progress: Progress) -> WeightsHandle:
        """Open a model's file. ``progress`` is called on the event loop. Raises LoadFailed or OSError."""
        ...

    async def open_instance(self, weights: WeightsHandle, entry: ModelEntry, kind: Use) -> InstanceHandle:
        """Make a context. Raises LoadFailed."""
        ...

    async def close_instance(self, instance: InstanceHandle) -> None:
        """Close a context; what still runs on it fails with ModelUnavailable."""
        ...

    async def close_weights(self, weights: WeightsHandle, *, drop_pages: bool) -> None:
        """Close weights without contexts; with ``drop_pages`` their pages leave memory too."""
        ...

    async def resident_bytes(self, weights: Sequence[WeightsHandle]) -> list[int | None]:
        """Measure how much of each file is in memory; None where the system does not tell."""
        ...

    async def cached_bytes(self, files: Sequence[Sequence[Path]]) -> list[int | None]:
        """Measure how much of closed files, given by their parts, is in memory; None as above."""
        ...

    def give_up(self) -> None:
        """Let running and later opens fail soon: the process is ending. On any thread."""
        ...
