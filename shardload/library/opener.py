"""Opening and closing of models: what the manager needs of whoever does it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class ShardResidency:
    """One shard as it was measured; a shard is what leaves and comes back together."""

    name: str
    nbytes: int
    resident_bytes: int
    second_bytes: int
    """Resident bytes of the layout that only prompts use."""
    shared_with: tuple[str, ...] = ()
    """Other open models that use some of the same places."""


@dataclass(frozen=True, slots=True)
class Residency:
    """What of some weights was in memory when it was measured."""

    resident_bytes: int
    """Of the layout that every step uses. Memory that several weights use is the first one's alone."""
    second_bytes: int = 0
    """Of the second layout, which only prompts use."""
    shared_bytes: int = 0
    """The part of the resident places that other open weights use as well, counted for each of them."""
    packed_bytes: int = 0
    """Resident bytes that lie in the packed store, whoever they count for."""
    elsewhere_bytes: int = 0
    """Resident bytes that count for others, before these."""
    shards: tuple[ShardResidency, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """What open weights take: packing behind an open makes private bytes into places, and measures those."""

    private_bytes: int
    """Anonymous memory, beside all mappings and contexts."""
    working_bytes: int
    """What each step touches: private or not, shared or not."""
    second_bytes: int = 0
    """Places of the second layout."""
    places: Mapping[Hashable, int] = field(default_factory=dict)
    """Mapped places of the working layout; equal places of two weights are the same memory."""
    page_ins: int = 0
    """Bytes that were brought into memory since the open."""
    page_outs: int = 0
    """Bytes that were sent out of memory since the open."""
    waited_seconds: float = 0.0
    """How long steps have waited for pages."""
    measured: Residency | None = None
    """What of these places was in memory when they were last measured, by `Opener.measure` or since they had
    changed; None before that."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightsHandle:
    """Open weights."""

    vocab: VocabLike
    read_facts: Callable[[], WeightsFacts]
    """Quick, and without effects; called on the event loop."""
    model: Any = None
    """The opener's own."""

    @property
    def facts(self) -> WeightsFacts:
        """What they take now."""
        return self.read_facts()


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

    async def open_weights(
        self, entry: ModelEntry, progress: Progress, *, resident_limit_bytes: int | None = None
    ) -> WeightsHandle:
        """Open a model's file. ``progress`` is called on the event loop. Raises LoadFailed or OSError.

        A limit streams: at most that much of the working layout is in memory at any time. The second layout
        is allowed at first.
        """
        ...

    async def open_instance(self, weights: WeightsHandle, entry: ModelEntry, kind: Use) -> InstanceHandle:
        """Make a context. Raises LoadFailed."""
        ...

    async def close_instance(self, instance: InstanceHandle) -> None:
        """Park the KV state of a context and close it; what still runs on it fails with ModelUnavailable."""
        ...

    async def park_instance(self, instance: InstanceHandle) -> int:
        """Save the KV state of an idle context and give its memory back; the context stays open.

        Returns the bytes that came free; 0 where that cannot be done. The next request takes them again.
        """
        ...

    async def close_weights(self, weights: WeightsHandle, *, drop_pages: bool) -> None:
        """Close weights without contexts; with ``drop_pages`` their pages leave memory too.

        Pages that other open weights use stay.
        """
        ...

    async def measure(self, weights: Sequence[WeightsHandle]) -> list[Residency | None]:
        """Measure what of each is in memory; None where the system does not tell.

        A page that several of them use counts for the first of them alone.
        """
        ...

    async def page_out(
        self, weights: WeightsHandle, keep_bytes: int, sparing: Sequence[WeightsHandle]
    ) -> int:
        """Send pages out of memory: all of the second layout, then of the working layout an even share of
        every layer, until at most ``keep_bytes`` of that are resident. They come back when they are used.

        Pages that ``sparing`` use stay, and do not count in what is kept. Returns the bytes that left.
        """
        ...

    def bring_back(self, weights: WeightsHandle) -> None:
        """Begin to read what of the working layout is missing, in the order of layers; returns at once."""
        ...

    def allow_second_layout(self, weights: WeightsHandle, allowed: bool) -> None:
        """Let prompts use the second layout, or have them use the working one; what is resident stays."""
        ...

    async def set_resident_limit(self, weights: WeightsHandle, limit_bytes: int | None) -> None:
        """Stream with a limit from the next step on, or with None stop streaming.

        Returns when no more than the limit is resident, also while steps run.
        """
        ...

    async def cached_bytes(self, files: Sequence[Sequence[Path]]) -> list[int | None]:
        """Measure how much of closed files, given by their parts, is in memory; None as above."""
        ...

    def give_up(self) -> None:
        """Let running and later opens fail soon: the process is ending. On any thread."""
        ...
