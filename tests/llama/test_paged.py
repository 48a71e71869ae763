from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from packable import (
    LARGE,
    MIXTURE,
    PACKED,
    PROMPT,
    fine_tune,
    linux_only,
    open_shelved,
    pack_file,
    said_by,
    say,
    small_model,
    speaking,
)
from paged_models import packed_bytes, paged, read_all, resident, shared_bytes, total, write_out

from shardload import memory
from shardload.llama import Model, ModelParams
from shardload.llama import paged as paged_module
from shardload.llama.packing import pack
from shardload.llama.paged import PagedWeights
from shardload.memory import Range
from shardload.memory.prefetch import Prefetcher
from shardload.shards.layouts import Layout
from shardload.shards.pantry import Pantry
from shardload.shards.places import merged, without

pytestmark = linux_only

SECONDS = 30


@pytest.fixture
def work_path(disk_path: Path) -> Path:
    """Pages are to leave."""
    return disk_path


def brought(weights: PagedWeights) -> None:
    for job in list(weights._jobs):
        assert job.done.wait(SECONDS)


# -- places


def test_shards_lie_in_the_store_and_in_the_file(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    names = [shard.name for shard in weights.places]
    assert names == ["embeddings", "block 0", "block 1", "output"]
    packed = {p.packing.stored for p in model.tensors if p.packing is not None}
    assert packed_bytes(weights) == sum(place.length for place in packed if place is not None)
    assert weights.second_bytes >= sum(p.file.length for p in model.tensors if p.packing is not None)
    assert weights.private_bytes == 0
    assert packed < set(weights.working)
    assert sum(weights.working.values()) <= total(weights)


def test_places_follow_the_packing(path: Path, pantry: Pantry) -> None:
    with open_shelved(path, pantry) as model, paged(model) as weights:
        private_bytes, mapped_bytes = weights.private_bytes, total(weights)
        assert private_bytes == model.private_tensor_bytes > 0
        assert packed_bytes(weights) == 0
        pack(model, pantry, moved=weights.refresh)
        assert (weights.private_bytes, packed_bytes(weights)) == (0, private_bytes)
        assert total(weights) == mapped_bytes + private_bytes


def test_what_nobody_packed_is_read_from_the_file(path: Path, pantry: Pantry) -> None:
    with open_shelved(path, pantry, pack_at_once=False) as model, paged(model) as weights:
        assert (weights.private_bytes, packed_bytes(weights), weights.second_bytes) == (0, 0, 0)
        assert sum(weights.working.values()) == sum(placed.file.length for placed in model.tensors)


def test_experts_are_shards_of_their_own(disk_path: Path, pantry: Pantry) -> None:
    path = small_model(disk_path / "experts.gguf", "Q4_0", MIXTURE)
    pack_file(path, pantry)
    with open_shelved(path, pantry) as model, paged(model) as weights:
        experts = [shard for shard in weights.places if " expert " in shard.name]
        assert len(experts) == MIXTURE.experts * MIXTURE.layers
        assert len({shard.nbytes for shard in experts}) == 1
        assert sum(shard.nbytes for shard in experts) < packed_bytes(weights)


# -- which order a step reads


def orders_of_steps(weights: PagedWeights, work: Callable[[], object]) -> list[tuple[int, Layout]]:
    """The tokens of each step of some work, and the order that was shown while it was computed."""
    seen: list[tuple[int, Layout]] = []
    real = weights.step

    @contextmanager
    def step(tokens: int, cursor: Any) -> Iterator[None]:
        with real(tokens, cursor):
            seen.append((tokens, weights.model.layouts.shown))
            yield

    weights.step = step  # type: ignore[method-assign]
    try:
        work()
    finally:
        weights.step = real  # type: ignore[method-assign]
    return seen


def test_each_step_reads_the_order_that_was_chosen_for_it(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    weights.choose = lambda tokens: "file" if tokens > 8 else "packed"
    seen = orders_of_steps(weights, lambda: say(model, tokens=3))
    assert seen == [(len(PROMPT), "file"), (1, "packed"), (1, "packed")]
    weights.second_allowed = False
    seen = orders_of_steps(weights, lambda: say(model, tokens=2))
    assert seen == [(len(PROMPT), "packed"), (1, "packed")]
    weights.second_allowed = True
    weights.set_limit(2**18)
    seen = orders_of_steps(weights, lambda: say(model, tokens=2))
    assert seen == [(len(PROMPT), "packed"), (1, "packed")]


def test_a_step_of_either_order_says_the_same_as_ever(stored: tuple[Model, PagedWeights], path: Path) -> None:
    model, weights = stored
    packed = say(model)
    weights.choose = lambda _: "file"
    in_file = say(model)
    assert in_file == said_by(path)
    weights.choose = lambda tokens: "file" if tokens > 1 else "packed"
    mixed = say(model)
    assert (mixed.after_prompt == in_file.after_prompt).all()
    assert mixed.tokens == packed.tokens
    weights.choose = lambda _: "packed"
    assert say(model) == packed == said_by(path, PACKED)


# -- leaving and coming back


def test_pages_leave_and_the_answer_is_the_same(disk_path: Path, pantry: Pantry) -> None:
    path = small_model(disk_path / "large.gguf", "Q4_0", LARGE)
    pack_file(path, pantry)
    write_out(disk_path)
    with open_shelved(path, pantry) as model, paged(model) as weights:
        expected = say(model)
        read_all(weights)
        if memory.file_resident_bytes(path) is None:
            return  # nobody tells
        # Some systems take away what is not used for a while.
        assert resident(weights)[0] > 0.9 * total(weights)
        freed = weights.page_out(0)
        # Small tensors lie among the second order's: touching them brings some of that.
        assert resident(weights)[0] < total(weights) // 10
        assert freed > total(weights)
        assert weights.traffic.page_outs == freed
        assert say(model) == expected


def test_the_second_order_leaves_first_and_then_an_even_share(
    stored: tuple[Model, PagedWeights], evicted: list[Range]
) -> None:
    _, weights = stored
    working = [place for shard in weights.places for place in shard.working]
    second = [place for shard in weights.places for place in shard.second]
    weights.page_out(total(weights) // 2)
    first = evicted[: len(evicted) // 2]
    assert shared_bytes(evicted, second) >= sum(place.length for place in without(second, merged(working)))
    assert shared_bytes(first, second) > shared_bytes(evicted[len(first) :], second)
    for shard in weights.places:
        assert 0.3 < shared_bytes(evicted, shard.working) / shard.nbytes < 0.7
    evicted.clear()
    weights.page_out(2 * total(weights))
    assert shared_bytes(evicted, working) == 0


def test_what_others_read_stays(path: Path, pantry: Pantry, disk_path: Path, evicted: list[Range]) -> None:
    tuned = fine_tune(disk_path / "tuned.gguf", path)
    for one in (path, tuned):
        pack_file(one, pantry)
    with (
        closing(Prefetcher()) as prefetcher,
        open_shelved(path, pantry) as first,
        open_shelved(tuned, pantry) as second,
        paged(first, prefetcher) as one,
        paged(second, prefetcher) as other,
    ):
        other.page_out(0, [one])
        assert shared_bytes(evicted, one.working) == 0
        own = [place for place in other.working if place not in one.working]
        assert shared_bytes(evicted, own) == sum(place.length for place in own)


def test_what_left_is_brought_back(stored: tuple[Model, PagedWeights]) -> None:
    _, weights = stored
    weights.page_out(0)
    weights.bring_back()
    brought(weights)
    looked_up = sum(shard.nbytes for shard in weights.places if shard.name == "embeddings")
    assert resident(weights)[0] >= total(weights) - looked_up
    assert weights.traffic.page_ins > 0


def test_what_left_before_a_failure_is_noted_and_brought_back(
    stored: tuple[Model, PagedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weights = stored
    failing = max(weights.working, key=lambda place: place.address)
    evicted: list[Range] = []

    def evict(place: Range) -> int:
        if place.address <= failing.address < place.end:
            raise OSError("the file is gone")
        evicted.append(place)
        return 0

    monkeypatch.setattr(paged_module, "evict", evict)
    monkeypatch.setattr(memory, "resident_bytes", lambda address, length: length)
    with weights.step(1, None):
        pass
    assert not weights._cold
    with pytest.raises(OSError, match="gone"):
        weights.page_out(0)
    assert weights._cold
    assert weights.traffic.page_outs == sum(place.length for place in evicted) > 0


class Noted(Prefetcher):
    """Remembers what it was asked for, and brings nothing in."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[Range]] = []

    def bring(self, ranges: Any, *, name: str) -> Any:
        self.asked.append(list(ranges))
        return super().bring([], name=name)


def test_each_order_is_read_with_what_has_no_other(path: Path, pantry: Pantry) -> None:
    pack_file(path, pantry)
    with (
        closing(Noted()) as prefetcher,
        open_shelved(path, pantry) as model,
        paged(model, prefetcher) as weights,
    ):
        weights.bring_back("packed")
        weights.bring_back("file")
        packed, both = prefetcher.asked
        in_file = both[: len(both) - len(packed)]
        assert both[len(in_file) :] == packed
        for placed in model.tensors:
            there = any(p.address <= placed.file.address and placed.file.end <= p.end for p in in_file)
            assert there == (placed.name != "token_embd.weight"), "rows of embeddings are looked up"


def test_a_first_step_reads_ahead_and_later_ones_do_not(path: Path, pantry: Pantry) -> None:
    pack_file(path, pantry)
    with (
        closing(Noted()) as prefetcher,
        open_shelved(path, pantry) as model,
        paged(model, prefetcher) as weights,
        speaking(model) as speak,
    ):
        weights._last_step = float("inf")
        speak(3)
        assert len(prefetcher.asked) == 1
        weights.page_out(0)
        speak(3)
        assert len(prefetcher.asked) == 2
        weights._last_step = 0.0
        speak(1)
        assert len(prefetcher.asked) == 3


def test_the_wait_for_pages_is_what_steps_take_longer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(paged_module, "perf_counter", lambda: clock[0])

    jobs: list[Any] = []

    class Slow(Prefetcher):
        def bring(self, ranges: Any, *, name: str) -> Any:
            jobs.append(paged_module.Job([Range(0, 1)], name))
            return jobs[-1]

    def step(seconds: float) -> None:
        with weights.step(1, None):
            clock[0] += seconds

    prefetcher = Slow()
    with closing(prefetcher), Model.open([path]) as model, paged(model, prefetcher) as weights:
        step(5.0)
        assert weights.traffic.waited_seconds == 0.0, "nobody knows how long it takes"
        jobs[-1].done.set()
        step(1.0)
        step(1.5)
        assert weights.traffic.waited_seconds == 0.0
        weights.bring_back()
        step(3.0)
        assert weights.traffic.waited_seconds == pytest.approx(2.0)
        jobs[-1].read_bytes = 7
        assert weights.traffic.page_ins == 7
        jobs[-1].done.set()
        weights.bring_back()
        assert weights.traffic.page_ins == 7
        for job in jobs:
            job.done.set()


# -- ends


def test_closing_waits_for_what_is_read(path: Path, pantry: Pantry) -> None:
    pack_file(path, pantry)
    with closing(Prefetcher()) as prefetcher, open_shelved(path, pantry) as model:
        with paged(model, prefetcher) as weights:
            assert model.paged is weights
            weights.set_limit(2**18)
            weights.set_limit(None)
            weights.bring_back()
            jobs = list(weights._jobs)
        assert all(job.done.is_set() for job in jobs)
        assert model.paged is None
        weights.close()
        weights.bring_back()
        assert weights._jobs == []
        assert not any(thread.name == "shardload-stream" for thread in threading.enumerate())


def test_a_prefetcher_that_is_closed_fails_no_step(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    expected = say(model)
    weights._prefetcher.close()
    weights.page_out(0)
    assert say(model) == expected


def test_a_step_that_fails_has_ended(stored: tuple[Model, PagedWeights]) -> None:
    model, weights = stored
    expected = say(model)
    weights.set_limit(total(weights) // 2)
    with pytest.raises(KeyError), weights.step(4, None):
        raise KeyError
    assert say(model) == expected


def test_weights_whose_tensors_are_not_known(path: Path) -> None:
    with Model.open([path], ModelParams(lazy=False)) as model, paged(model) as weights:
        assert (weights.places, weights.working) == ((), {})
        assert say(model).tokens
        weights.bring_back()
        assert weights._jobs == []
        assert weights.page_out(0) == 0
        weights.set_limit(2**20)
        assert say(model).tokens
