"""The pages of all open llama.cpp models: measured, sent away and brought back for the manager."""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardload import memory
from shardload.gguf import TensorInfo
from shardload.gguf.constants import TENSOR_TYPES
from shardload.library.opener import Residency, ShardResidency, WeightsFacts
from shardload.library.seen_pages import SeenPages
from shardload.llama.packing import Packer, PackingJob
from shardload.llama.paged import PagedWeights
from shardload.memory.prefetch import Prefetcher
from shardload.shards.places import merged, without
from shardload.shards.shard import shards_of

if TYPE_CHECKING:
    from shardload.llama import Model
    from shardload.llama.layout_choice import LayoutChoice
    from shardload.llama.placed import PlacedTensor
    from shardload.shards.pantry import Pantry, Shelf

REST_FACTOR = 20.0
"""What packing moves is measured for at most one part in this many of the time."""

logger = logging.getLogger("shardload.library")


class OpenModel:
    """One open model and its pages; made and used on the opener's thread, ``facts`` on any."""

    def __init__(
        self, name: str, model: Model, heap_bytes: int, prefetcher: Prefetcher, choice: LayoutChoice | None
    ) -> None:
        """``heap_bytes`` is what opening took of private memory beside packed weights."""
        self.name, self.model, self._heap_bytes = name, model, heap_bytes
        self.paged = PagedWeights(model, shards_of(map(_info, model.tensors)), prefetcher)
        if choice is not None:
            self.paged.choose = choice.for_types(_packed_bytes_by_type(model))
        self.packing: PackingJob | None = None
        self.contents: dict[str, memory.Range] | None = None
        """What other models will find in memory if they open now, by digest; None while not known."""
        self.measuring = threading.Lock()
        """Held by whoever measures, or changes what there is to be measured."""
        self.seen: Sequence[memory.Range] = ()
        """What counted for others when it was last measured."""
        self.rests_until = 0.0
        """Until when it is not measured for having moved: what is told then is as of before."""
        self._whole = self._shown = self._look()

    def refresh(self) -> None:
        """Look again where tensors are; told with the next measurement."""
        self.paged.refresh()
        self._whole = self._look()

    def show(self, measured: Residency | None) -> None:
        """Tell a measurement, and of what it was."""
        self._shown = replace(self._whole, measured=measured)

    def _look(self) -> WeightsFacts:
        paged = self.paged
        return WeightsFacts(
            private_bytes=self._heap_bytes + paged.private_bytes,
            working_bytes=paged.private_bytes + sum(paged.working.values()),
            second_bytes=paged.second_bytes,
            places=dict[Hashable, int](paged.working.items()),
        )

    def facts(self) -> WeightsFacts:
        """What it takes, by one measurement; quick."""
        traffic = self.paged.traffic
        return replace(
            self._shown,
            page_ins=traffic.page_ins,
            page_outs=traffic.page_outs,
            waited_seconds=traffic.waited_seconds,
        )

    def close(self) -> None:
        """Stop whatever goes on with its pages; the model is closed by its owner."""
        if self.packing is not None:
            self.packing.cancel()
        self.paged.close()


class LlamaPaging:
    """What the open models of one opener have in memory; on the opener's thread, but for ``close``."""

    def __init__(
        self,
        pantry: Pantry | None = None,
        choice: LayoutChoice | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """``pantry`` has the packed store; without it models keep what llama.cpp packs to themselves."""
        self.pantry, self._choice = pantry, choice
        self._prefetcher = Prefetcher()
        self._packer = Packer(pantry, choice, is_busy)
        self._open: dict[Model, OpenModel] = {}
        self._publishing = threading.Lock()
        self._contents: dict[str, memory.Range] = {}
        """Those of all open models; replaced and never changed, for it is read on any thread."""

    def opened(self, name: str, model: Model, heap_bytes: int, limit_bytes: int | None = None) -> OpenModel:
        """Mind the pages of a model that was opened, for ``heap_bytes`` of private memory in all.

        At most ``limit_bytes`` of it are in memory from now on, and it is packed, where it is not.
        """
        heap_bytes = max(heap_bytes - model.private_tensor_bytes, 0)
        found = OpenModel(name, model, heap_bytes, self._prefetcher, self._choice)
        self._open[model] = found
        try:
            self._publish()
            if limit_bytes is not None:
                found.paged.set_limit(limit_bytes)
            if found.paged.packed:
                model.drop_read_ahead()
            if model.tensors:
                found.packing = self._packer.pack(model, lambda: self._moved(found))
        except BaseException:
            self.closing(model)
            raise
        return found

    def closing(self, model: Model) -> None:
        """Mind a model no longer; it is about to be closed."""
        found = self._open.pop(model, None)
        if found is not None:
            self._publish()
            found.close()

    def measure(self, models: Sequence[Model]) -> list[Residency | None]:
        """What of each is in memory; a page that several use counts for the first of them."""
        seen: list[memory.Range] = []
        found = [self._open.get(model) for model in models]
        return [self._measure(one, seen) if one is not None else None for one in found]

    def page_out(self, model: Model, keep_bytes: int, sparing: Sequence[Model]) -> int:
        """Send pages of one away, and none that the others use."""
        mine = self._open.get(model)
        others = [self._open[other].paged for other in sparing if other in self._open and other is not model]
        return mine.paged.page_out(keep_bytes, others) if mine is not None else 0

    def page_out_all(self, model: Model) -> None:
        """Send all pages of one away that no other open model uses: it is about to be closed."""
        self.page_out(model, 0, [other for other in self._open if other is not model])

    def bring_back(self, model: Model) -> None:
        """Begin to read what of one is missing; on any thread."""
        if (found := self._open.get(model)) is not None:
            found.paged.bring_back()

    def allow_second(self, model: Model, allowed: bool) -> None:
        """Let steps of many tokens read the second order of bytes, or not; on any thread."""
        if (found := self._open.get(model)) is not None:
            found.paged.second_allowed = allowed

    def set_limit(self, model: Model, limit_bytes: int | None) -> None:
        """Have at most so much of one in memory, or all of it."""
        if (found := self._open.get(model)) is not None:
            found.paged.set_limit(limit_bytes)

    def shelf(self, paths: Sequence[Path]) -> Shelf | None:
        """What there is packed for a model that is about to be opened."""
        return self.pantry.shelf(paths) if self.pantry is not None else None

    def foreseen(self, paths: Sequence[Path]) -> Callable[[], dict[Hashable, int]]:
        """Tells the places that a model would share with those that are open, were it opened now.

        On any thread. The first to ask reads a small file for each part, where anything is open.
        """
        known: frozenset[str] | None = None

        def places() -> dict[Hashable, int]:
            nonlocal known
            contents = self._contents
            if not contents or self.pantry is None:
                return {}
            if known is None:
                known = self.pantry.known(paths)
            return {contents[digest]: contents[digest].length for digest in known & contents.keys()}

        return places

    def close(self) -> None:
        """End all reading and packing in the background; idempotent."""
        self._packer.close()
        self._prefetcher.close()

    def _moved(self, open_model: OpenModel) -> None:
        """Take note of tensors that were packed; on the packer's thread."""
        with open_model.measuring:
            open_model.refresh()
        if (began := time.monotonic()) >= open_model.rests_until:
            self._measure(open_model, list(open_model.seen))
            ended = time.monotonic()
            open_model.rests_until = ended + REST_FACTOR * (ended - began)
        with self._publishing:
            open_model.contents = None
        self._publish()

    def _publish(self) -> None:
        """Tell predictions what there is to share."""
        with self._publishing:
            contents: dict[str, memory.Range] = {}
            for found in tuple(self._open.values()):
                if found.contents is None and self.pantry is not None:
                    found.contents = _contents(found, self.pantry)
                contents |= found.contents or {}
            self._contents = contents

    def _measure(self, open_model: OpenModel, seen: list[memory.Range]) -> Residency | None:
        with open_model.measuring:
            open_model.seen = tuple(seen)
            measured = self._look(open_model, seen)
            open_model.show(measured)
        return measured

    def _look(self, open_model: OpenModel, seen: list[memory.Range]) -> Residency | None:
        paged = open_model.paged
        if not paged.working and not paged.private_bytes:
            return _measure_file(open_model.model)
        places = [place for shard in paged.places for place in (*shard.working, *shard.second)]
        pages = SeenPages.of([*places, *paged.working])
        if pages is None:
            return None
        known, sharing = merged(seen, gap_bytes=0), self._sharing(open_model)
        shards = tuple(
            ShardResidency(
                shard.name,
                shard.nbytes,
                pages.resident_bytes(without(shard.working, known)),
                pages.resident_bytes(without(shard.second, known)),
                shared_with=_names(shard.working, sharing),
            )
            for shard in paged.places
        )
        seen += places
        resident_bytes = sum(shard.resident_bytes for shard in shards)
        return Residency(
            resident_bytes=resident_bytes,
            second_bytes=sum(shard.second_bytes for shard in shards),
            shared_bytes=pages.resident_bytes(sharing),
            packed_bytes=pages.resident_bytes(paged.working.keys() & set(paged.packed)),
            elsewhere_bytes=max(pages.resident_bytes(paged.working) - resident_bytes, 0) if sharing else 0,
            shards=shards,
        )

    def _sharing(self, open_model: OpenModel) -> dict[memory.Range, list[str]]:
        """The places of a model that others use too, in order of addresses, and who."""
        found: dict[memory.Range, list[str]] = {}
        for other in tuple(self._open.values()):
            if other is not open_model:
                for place in open_model.paged.working.keys() & other.paged.working.keys():
                    found.setdefault(place, []).append(other.name)
        return dict(sorted(found.items(), key=lambda item: item[0].address))


def _contents(open_model: OpenModel, pantry: Pantry) -> dict[str, memory.Range] | None:
    """Where each content is that others would use from there; None while its files are not known.

    A tensor that is read from another file than others would read it from is left out.
    """
    model, working = open_model.model, open_model.paged.working
    try:
        if not model.is_of(map(os.stat, model.paths)):
            return {}  # replaced: what is known now is of other files
    except OSError:
        return {}
    shelf, found, is_known = pantry.shelf(model.paths), dict[str, memory.Range](), False
    for placed in model.tensors:
        if (digest := shelf.digest(placed.name)) is None:
            continue
        is_known = True
        place: memory.Range | None = placed.file
        if placed.packing is not None:
            place = placed.packing.stored
        elif not (shelf.lends(placed.name) if _is_own(model, placed.file) else shelf.lent(placed.name)):
            place = None
        if place in working:
            found[digest] = place
    return found if is_known else None


def _is_own(model: Model, place: memory.Range) -> bool:
    """Whether it is in a file of the model's own."""
    return any(
        mapping.address <= place.address < mapping.address + mapping.length for mapping in model.mappings
    )


def _measure_file(model: Model) -> Residency | None:
    """As much as can be told of weights whose mappings are not known."""
    try:
        resident_bytes = model.resident_bytes()
    except OSError:
        return None  # the file is gone
    return None if resident_bytes is None else Residency(resident_bytes)


def _names(places: Sequence[memory.Range], sharing: dict[memory.Range, list[str]]) -> tuple[str, ...]:
    """Who uses some of these bytes too; ``sharing`` is in order of addresses."""
    shared, names = list(sharing), set[str]()
    for place in places:
        first = max(bisect_right(shared, place.address, key=_address) - 1, 0)
        for one in shared[first : bisect_left(shared, place.end, key=_address)]:
            names.update(sharing[one] if one.end > place.address else ())
    return tuple(sorted(names))


def _address(place: memory.Range) -> int:
    return place.address


def _info(placed: PlacedTensor) -> TensorInfo:
    """A tensor as a file describes it; where in the file it is is not asked for."""
    ne = list(placed.ne)
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    return TensorInfo(placed.name, TENSOR_TYPES[placed.type_code], tuple(ne), 0, placed.file.length)


def _packed_bytes_by_type(model: Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for placed in model.tensors:
        if placed.packing is not None:
            found[placed.type_name] = found.get(placed.type_name, 0) + placed.file.length
    return found
