"""The weights of an open model as memory: what of them is there, what leaves, and what comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from shardload import memory
from shardload.errors import HandleClosed
from shardload.llama.placed import PlacedTensor
from shardload.llama.streamed import StreamedWeights
from shardload.memory import Range
from shardload.memory.division import divide, total_bytes
from shardload.memory.eviction import evict
from shardload.memory.prefetch import Job, Prefetcher
from shardload.memory.streaming import WINDOW_BYTES
from shardload.shards.layouts import Layout
from shardload.shards.places import ShardPlaces, TensorPlace, merged, place_shards, without
from shardload.shards.shard import EMBEDDINGS, Shard, is_tied

if TYPE_CHECKING:
    from shardload.llama.cursor import Cursor
    from shardload.llama.model import Model

logger = logging.getLogger("shardload.llama")

LOOKED_UP = ("token_embd", "per_layer_token_embd")
SMALL_BYTES = 2**18
"""A tensor of this size is read page by page where its neighbours are packed elsewhere."""
LOOK_AGAIN_SECONDS = 2.0
"""Weights that were not used for as long may have lost pages: some kernels take what nobody touches."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals since the open, in bytes and seconds."""

    page_ins: int = 0
    page_outs: int = 0
    waited_seconds: float = 0.0

    def plus(self, page_ins: int = 0, page_outs: int = 0, waited_seconds: float = 0.0) -> Traffic:
        """These and more."""
        return Traffic(
            self.page_ins + page_ins, self.page_outs + page_outs, self.waited_seconds + waited_seconds
        )


class PagedWeights:
    """One model's pages. `step` is called by whoever computes; every method on any thread.

    The model and the prefetcher are borrowed; `close` comes before theirs.
    """

    def __init__(
        self,
        model: Model,
        shards: Sequence[Shard],
        prefetcher: Prefetcher,
        *,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """``window_bytes`` is how far streaming reads ahead."""
        self.model, self._shards, self._prefetcher = model, tuple(shards), prefetcher
        self._window_bytes = window_bytes
        self._is_tied = is_tied(placed.name for placed in model.tensors)
        # Whoever changes how pages are minded holds the first; the second is for a look or a note.
        self._changing, self._lock = threading.RLock(), threading.Lock()
        self.second_allowed = True
        self.choose: Callable[[int], Layout] = _packed_always
        """Which order of bytes a step over so many tokens reads, where both are allowed."""
        self._streamer: StreamedWeights | None = None
        self.limit_bytes: int | None = None
        self._traffic = Traffic()
        self._jobs: list[Job] = []
        self._last_step = 0.0
        self._cold = True
        self._closed = False
        self._usual = _UsualPace()
        self.places: tuple[ShardPlaces, ...] = ()
        self.working: dict[Range, int] = {}
        """Every mapped place that each step reads, tensor by tensor, and its bytes."""
        self.refresh()
        model.paged = self

    # -- what there is

    def refresh(self) -> None:
        """Look again where tensors are: packing has moved some from memory of their own into files."""
        with self._changing:
            tensors = _places_of(self.model.tensors)
            self.places = place_shards(self._shards, tensors)
            working = (place.packed or place.file for place in tensors.values() if not place.private)
            self.working = {place: place.length for place in working}
            self._expect_lookups(tensors)
            if self._streamer is not None:
                self._stream()

    @property
    def private_bytes(self) -> int:
        """Packed weights in memory of the process's own."""
        return self.model.private_tensor_bytes

    @property
    def second_bytes(self) -> int:
        """Places that only steps of many tokens read."""
        return sum(total_bytes(shard.second) for shard in self.places)

    @property
    def packed(self) -> list[Range]:
        """What is mapped from the store."""
        packings = (placed.packing for placed in self.model.tensors if placed.packing is not None)
        return [packing.stored for packing in packings if packing.stored is not None]

    @property
    def traffic(self) -> Traffic:
        """What came and went so far."""
        with self._lock:
            found = self._traffic.plus(sum(job.read_bytes for job in self._jobs))
            return found if self._streamer is None else _with_stats(found, self._streamer)

    # -- what leaves

    def page_out(self, keep_bytes: int, sparing: Iterable[PagedWeights] = ()) -> int:
        """Send pages away: the second order's, then an even share of each layer until ``keep_bytes`` stay.

        What ``sparing`` read stays. Returns the bytes that left.
        """
        spared = merged((place for other in sparing for place in other.working), gap_bytes=0)
        self._stop_reading()
        freed = self._send_away_second(spared)
        divisions = divide([shard.working for shard in self._in_order()], keep_bytes)
        streamed = [place for division in divisions for place in division.streamed]
        return freed + self._send_away(without(streamed, spared))

    def set_limit(self, limit_bytes: int | None) -> None:
        """Have at most so much in memory, and read the rest anew for every step; None for no limit."""
        with self._changing:
            self.limit_bytes = limit_bytes
            if self._streamer is not None and limit_bytes is not None:
                self._streamer.resize(self._mapped_limit_bytes)
            elif self._streamer is not None or limit_bytes is not None:
                self._stream()

    @property
    def streams(self) -> bool:
        """Whether a part of the weights is read anew for every step."""
        return self._streamer is not None

    def close(self) -> None:
        """Stop reading ahead; idempotent."""
        with self._changing:
            with self._lock:
                self._closed = True
            self.set_limit(None)
            self._stop_reading()
            self.model.paged = None

    # -- what comes back

    def layout_for(self, tokens: int) -> Layout:
        """The order of bytes for a step."""
        return self.choose(tokens) if self.second_allowed and self._streamer is None else "packed"

    def bring_back(self, layout: Layout = "packed") -> None:
        """Begin to read what a step in that order needs, in the order of layers, and then the other one's.

        Returns at once; what is there is not read.
        """
        shards = [shard for shard in self._in_order() if self._is_tied or shard.name != EMBEDDINGS]
        ranges = [place for shard in shards for place in shard.in_file] if layout == "file" else []
        ranges += [place for shard in shards for place in shard.working]
        if not ranges:
            return
        with self._lock:
            if self._closed or self._streamer is not None:
                return
            self._end_jobs()
            with suppress(HandleClosed):  # the process is ending
                self._jobs.append(self._prefetcher.bring(ranges, name=str(self.model.path)))

    @contextmanager
    def step(self, tokens: int, cursor: Cursor | None) -> Iterator[None]:
        """Compute in the body: pages are read ahead of it, where they have to be."""
        layout = self.layout_for(tokens)
        with self.model.layouts.computing(layout):
            began = perf_counter()
            with self._lock:
                looks, self._cold = self._cold or began - self._last_step > LOOK_AGAIN_SECONDS, False
                streamer = self._streamer
            if looks:
                self.bring_back(layout)
            reading = any(not job.done.is_set() for job in list(self._jobs))
            with streamer.step(tokens, cursor) if streamer is not None else nullcontext():
                yield
            self._last_step = perf_counter()
            if streamer is None:
                self._note_pace(tokens, self._last_step - began, reading)

    def _note_pace(self, tokens: int, seconds: float, reading: bool) -> None:
        with self._lock:
            if reading:
                waited = max(0.0, seconds - self._usual.seconds(tokens, seconds))
                self._traffic = self._traffic.plus(waited_seconds=waited)
            else:
                self._usual.note(tokens, seconds)

    def _in_order(self) -> list[ShardPlaces]:
        """The shards in the order of a step; embeddings last: rows are looked up there, or they end it."""
        return sorted(self.places, key=lambda shard: shard.name == EMBEDDINGS)

    def _expect_lookups(self, tensors: Mapping[str, TensorPlace]) -> None:
        """Read rows of embeddings, and what is small among packed weights, without what is beside them."""
        has_second = any(place.packed is not None for place in tensors.values())
        for name, place in tensors.items():
            if place.packed is not None or place.private:
                continue
            looked_up = name.startswith(LOOKED_UP) and not self._is_tied
            if looked_up or (has_second and place.file.length <= SMALL_BYTES):
                memory.expect_lookups(place.file)

    def _stream(self) -> None:
        """Begin to stream, stream from other places, or end it, as the limit and the places want it."""
        old, made = self._streamer, None
        if self.limit_bytes is not None:
            made = StreamedWeights(
                self.places, self._mapped_limit_bytes, tied=self._is_tied, window_bytes=self._window_bytes
            )
        if old is not None:
            old.close()
        with self._lock:
            self._streamer = made
            self._traffic = self._traffic if old is None else _with_stats(self._traffic, old)
        if made is not None:
            self._stop_reading()
            self._send_away_second()
            looked_up = (shard.working for shard in self.places if shard.name == EMBEDDINGS)
            if not self._is_tied:
                self._send_away(place for places in looked_up for place in places)

    @property
    def _mapped_limit_bytes(self) -> int:
        return max(0, (self.limit_bytes or 0) - self.private_bytes)

    def _send_away_second(self, spared: Sequence[Range] = ()) -> int:
        kept = merged([*spared, *self.working], gap_bytes=0)
        return self._send_away(without((place for shard in self.places for place in shard.second), kept))

    def _send_away(self, places: Iterable[Range]) -> int:
        """Send pages away; the bytes that left, as far as the system tells."""
        freed = 0
        try:
            for place in places:
                before = memory.resident_bytes(place.address, place.length)
                left = evict(place)
                if before is not None and left is not None:
                    freed += max(before - left, 0)
        finally:
            with self._lock:
                self._cold = True
                self._traffic = self._traffic.plus(page_outs=freed)
        return freed

    def _stop_reading(self) -> None:
        """Read nothing ahead any more, and wait for what is under way."""
        with self._lock:
            self._end_jobs()
            jobs = list(self._jobs)
        for job in jobs:
            job.done.wait()

    def _end_jobs(self) -> None:
        for job in self._jobs:
            job.cancel()
        ended = [job for job in self._jobs if job.done.is_set()]
        self._traffic = self._traffic.plus(sum(job.read_bytes for job in ended))
        self._jobs = [job for job in self._jobs if job not in ended]


def _places_of(tensors: Iterable[PlacedTensor]) -> dict[str, TensorPlace]:
    """Where tensors are, by name; one that is there in both orders, as tied embeddings, counts packed."""
    found: dict[str, TensorPlace] = {}
    for placed in tensors:
        packing = placed.packing
        if packing is not None and packing.place is not None:
            found[placed.name] = TensorPlace(placed.file, packing.stored, packing.is_private)
        else:
            found.setdefault(placed.name, TensorPlace(placed.file))
    return found


def _with_stats(traffic: Traffic, streamer: StreamedWeights) -> Traffic:
    stats = streamer.stats
    return traffic.plus(stats.read_bytes, stats.dropped_bytes, stats.waited_seconds)


class _UsualPace:
    """How long steps take when nothing has to be read: the shortest seen, by powers of two of tokens."""

    def __init__(self) -> None:
        self._best: dict[int, float] = {}

    def note(self, tokens: int, seconds: float) -> None:
        kind = tokens.bit_length()
        self._best[kind] = min(seconds, self._best.get(kind, seconds))

    def seconds(self, tokens: int, default: float) -> float:
        return self._best.get(tokens.bit_length(), default)


def _packed_always(_tokens: int) -> Layout:
    return "packed"
