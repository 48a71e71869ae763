"""The weights of an open model as memory: what of them is there, what leaves, and what comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from shardload import memory
from shardload.llama.streamed import StreamedWeights
from shardload.memory.division import divide, subtract, total_bytes
from shardload.memory.eviction import evict
from shardload.memory.prefetch import Job, Prefetcher
from shardload.shards.layouts import Layout
from shardload.shards.places import ShardPlaces, TensorPlace, place_shards
from shardload.shards.shard import EMBEDDINGS, Shard

if TYPE_CHECKING:
    from shardload.llama.cursor import Cursor
    from shardload.llama.model import Model
    from shardload.memory import Range

logger = logging.getLogger("shardload.llama")

LOOK_AGAIN_SECONDS = 2.0
"""Weights that were not used for as long may have lost pages: some kernels take what nobody touches."""


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """What of one shard is in memory."""

    name: str
    nbytes: int
    resident_bytes: int
    second_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals since the open, in bytes and seconds."""

    page_ins: int = 0
    page_outs: int = 0
    waited_seconds: float = 0.0


class PagedWeights:
    """One model's pages. `step` is called by whoever computes, everything else on the opener's thread.

    The model and the prefetcher are borrowed; `close` comes before the model's.
    """

    def __init__(self, model: Model, shards: Sequence[Shard], prefetcher: Prefetcher) -> None:
        self.model, self._shards, self._prefetcher = model, tuple(shards), prefetcher
        self._lock = threading.Lock()
        self.second_allowed = True
        self.choose: Callable[[int], Layout] = _packed_always
        """Which order of bytes a step over so many tokens reads, where both are allowed."""
        self._streamer: StreamedWeights | None = None
        self.limit_bytes: int | None = None
        self._traffic = Traffic()
        self._job: Job | None = None
        self._last_step = 0.0
        self._cold = True
        self._usual = _UsualPace()
        self.places: tuple[ShardPlaces, ...] = ()
        self.working: dict[Range, int] = {}
        """Every mapped place that each step reads, tensor by tensor, and its bytes."""
        self.refresh()
        model.paged = self

    # -- what there is

    def refresh(self) -> None:
        """Look again where tensors are: packing has moved some from memory of their own into files."""
        tensors: dict[str, TensorPlace] = {}
        working: dict[Range, int] = {}
        for placed in self.model.tensors:
            packing = placed.packing
            private = packing is not None and packing.is_private
            packed = packing.place if packing is not None and not private else None
            tensors[placed.name] = TensorPlace(placed.file, packed, private)
            if not private:
                place = packed or placed.file
                working[place] = place.length
        self.places = place_shards(self._shards, tensors)
        self.working = working

    @property
    def private_bytes(self) -> int:
        """Packed weights in memory of the process's own."""
        return self.model.private_tensor_bytes

    @property
    def second_bytes(self) -> int:
        """Places that only steps of many tokens read."""
        return sum(total_bytes(shard.second) for shard in self.places)

    @property
    def packed_bytes(self) -> int:
        """What is mapped from the store."""
        return sum(shard.packed_bytes for shard in self.places)

    @property
    def traffic(self) -> Traffic:
        """What came and went so far."""
        found, streamer, job = self._traffic, self._streamer, self._job
        read = job.read_bytes if job is not None else 0
        if streamer is not None:
            stats = streamer.stats
            return Traffic(
                found.page_ins + read + stats.read_bytes,
                found.page_outs + stats.dropped_bytes,
                found.waited_seconds + stats.waited_seconds,
            )
        return Traffic(found.page_ins + read, found.page_outs, found.waited_seconds)

    def measure(self, seen: list[Range]) -> tuple[ShardMemory, ...] | None:
        """What of each shard is in memory, without ranges in ``seen``, to which all are added.

        None where the system does not tell.
        """
        found = []
        for shard in self.places:
            resident = _resident(subtract(shard.working, seen))
            second = _resident(subtract(shard.second, seen))
            if resident is None or second is None:
                return None
            found.append(ShardMemory(shard.name, shard.nbytes, resident, second))
        for shard in self.places:
            seen += [*shard.working, *shard.second]
        return tuple(found)

    # -- what leaves

    def page_out(self, keep_bytes: int, sparing: Iterable[PagedWeights] = ()) -> int:
        """Send pages away: the second order's, then an even share of each layer until ``keep_bytes`` stay.

        What ``sparing`` read stays. Returns the bytes that left.
        """
        spared = [place for other in sparing for place in other.working]
        self._cancel()
        second = [place for shard in self.places for place in shard.second]
        mine = [place for shard in self.places for place in shard.working]
        freed = _evict(subtract(second, [*spared, *mine]))
        divisions = divide([shard.working for shard in self._in_order()], keep_bytes)
        streamed = [place for division in divisions for place in division.streamed]
        freed += _evict(subtract(streamed, spared))
        with self._lock:
            self._cold = True
        self._add(page_outs=freed)
        return freed

    def drop_second(self, sparing: Iterable[PagedWeights] = ()) -> int:
        """Send the pages of the second order away; the bytes that left."""
        spared = [*(place for other in sparing for place in other.working), *self.working]
        freed = _evict(subtract([place for shard in self.places for place in shard.second], spared))
        self._add(page_outs=freed)
        return freed

    def set_limit(self, limit_bytes: int | None) -> None:
        """Have at most so much in memory, and read the rest anew for every step; None for no limit."""
        self.limit_bytes = limit_bytes
        with self._lock:
            streamer = self._streamer
            if limit_bytes is None:
                self._streamer = None
        if limit_bytes is None:
            if streamer is not None:
                streamer.close()
                stats = streamer.stats
                self._add(stats.read_bytes, stats.dropped_bytes, stats.waited_seconds)
        elif streamer is not None:
            streamer.resize(limit_bytes)
        else:
            self.drop_second()
            _evict(place for shard in self.places if shard.name == EMBEDDINGS for place in shard.working)
            made = StreamedWeights(self.places, limit_bytes, tied=self._is_tied)
            with self._lock:
                self._streamer = made

    @property
    def streams(self) -> bool:
        """Whether a part of the weights is read anew for every step."""
        return self._streamer is not None

    def close(self) -> None:
        """Stop reading ahead; idempotent."""
        self._cancel()
        self.set_limit(None)
        self.model.paged = None

    # -- what comes back

    def layout_for(self, tokens: int) -> Layout:
        """The order of bytes for a step."""
        return self.choose(tokens) if self.second_allowed and self._streamer is None else "packed"

    def bring_back(self, layout: Layout = "packed") -> None:
        """Begin to read what a step in that order needs, in the order of layers, and then the other one's.

        Returns at once; what is there is not read.
        """
        if self._streamer is not None:
            return
        shards = self._in_order()
        ranges = [place for shard in shards for place in (shard.working if layout == "packed" else ())]
        if layout == "file":
            for shard in shards:
                ranges += shard.second or shard.working
            ranges += [place for shard in shards if shard.second for place in shard.working]
        self._cancel()
        self._job = self._prefetcher.bring(ranges, name=str(self.model.path))

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
            job = self._job
            reading = streamer is None and job is not None and not job.done.is_set()
            with streamer.step(tokens, cursor) if streamer is not None else nullcontext():
                yield
            self._last_step = perf_counter()
            seconds = self._last_step - began
            if streamer is None and not reading:
                self._usual.note(tokens, seconds)
            elif streamer is None:
                self._add(waited_seconds=max(0.0, seconds - self._usual.seconds(tokens, seconds)))

    def _in_order(self) -> list[ShardPlaces]:
        """The shards in the order of a step; embeddings last: rows are looked up there, or they end it."""
        return sorted(self.places, key=lambda shard: shard.name == EMBEDDINGS)

    @property
    def _is_tied(self) -> bool:
        """Whether the embeddings are the output's weights too."""
        return not any(placed.name == "output.weight" for placed in self.model.tensors)

    def _cancel(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
            job.done.wait()
            self._add(page_ins=job.read_bytes)

    def _add(self, page_ins: int = 0, page_outs: int = 0, waited_seconds: float = 0.0) -> None:
        with self._lock:
            old = self._traffic
            self._traffic = Traffic(
                old.page_ins + page_ins, old.page_outs + page_outs, old.waited_seconds + waited_seconds
            )


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


def _resident(places: Iterable[Range]) -> int | None:
    total = 0
    for place in places:
        count = memory.resident_bytes(place.address, place.length)
        if count is None:
            return None
        total += count
    return total


def _evict(places: Iterable[Range]) -> int:
    """Send pages away; the bytes that left, as far as the system tells."""
    freed = 0
    for place in places:
        before = memory.resident_bytes(place.address, place.length)
        left = evict(place)
        if before is not None and left is not None:
            freed += max(before - left, 0)
    return freed
