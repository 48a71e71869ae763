from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from packable import (
    MIXTURE,
    PACKED,
    fine_tune,
    learn,
    linux_only,
    open_shelved,
    pack_file,
    rename_over,
    said_by,
    say,
    small_model,
    speaking,
)

from shardload import memory
from shardload.library.llama_paging import LlamaPaging, OpenModel
from shardload.library.opener import Residency
from shardload.llama import Model, ModelParams
from shardload.memory import linux
from shardload.shards.layouts import LayoutTable, Speeds
from shardload.shards.pantry import Pantry

pytestmark = [pytest.mark.real, linux_only]

SECONDS = 30


@pytest.fixture
def paging(pantry: Pantry) -> Iterator[LlamaPaging]:
    with closing(LlamaPaging(pantry)) as paging:
        yield paging


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model.gguf")


@pytest.fixture
def family(path: Path, tmp_path: Path, pantry: Pantry) -> list[Path]:
    """A model and two fine-tunes, packed."""
    paths = [path, *(fine_tune(tmp_path / f"tuned-{seed}.gguf", path, seed=seed) for seed in (2, 3))]
    for one in paths:
        pack_file(one, pantry)
    return paths


def wait_for_packing(paging: LlamaPaging, model: Model) -> None:
    job = paging._open[model].packing
    assert job is not None
    assert job.done.wait(SECONDS)


def close(paging: LlamaPaging, model: Model) -> None:
    paging.closing(model)
    model.close()


def measured(paging: LlamaPaging, *models: Model) -> list[Residency]:
    found = paging.measure(models)
    assert None not in found
    return [one for one in found if one is not None]


def test_private_bytes_become_places(path: Path, pantry: Pantry, paging: LlamaPaging) -> None:
    model = open_shelved(path, pantry)
    private_bytes = model.private_tensor_bytes
    blocked = threading.Event()
    paging._packer._is_busy = lambda: not blocked.is_set()
    opened = paging.opened("a", model, private_bytes + 1000)
    before = opened.facts()
    assert before.private_bytes == private_bytes + 1000
    assert before.working_bytes == private_bytes + sum(before.places.values())
    assert before.second_bytes > 0
    blocked.set()
    wait_for_packing(paging, model)
    after = opened.facts()
    assert after.private_bytes == 1000
    assert sum(after.places.values()) == after.working_bytes == before.working_bytes
    assert after.second_bytes == before.second_bytes
    close(paging, model)


def test_what_has_moved_is_told_as_it_is_measured(
    path: Path, pantry: Pantry, paging: LlamaPaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_shelved(path, pantry)
    blocked = threading.Event()
    paging._packer._is_busy = lambda: not blocked.is_set()
    opened = paging.opened("a", model, model.private_tensor_bytes)
    (before,) = measured(paging, model)
    shown = opened.facts()
    assert shown.measured == before
    assert before.packed_bytes == 0
    look, meanwhile = paging._look, []

    def watched(*arguments: Any) -> Residency | None:
        meanwhile.append((opened.paged.private_bytes, opened.facts()))
        return look(*arguments)

    monkeypatch.setattr(paging, "_look", watched)
    blocked.set()
    wait_for_packing(paging, model)
    assert meanwhile == [(0, shown)], "told before it was measured"
    after = opened.facts()
    assert (after.private_bytes, after.measured) == (0, *measured(paging, model))
    assert after.measured is not None
    assert 0 < after.measured.packed_bytes <= after.measured.resident_bytes
    close(paging, model)


def test_one_measurement_asks_for_each_page_once(
    family: list[Path], pantry: Pantry, paging: LlamaPaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages come and go meanwhile: what is asked for again may be another answer."""
    models = [open_shelved(path, pantry) for path in family[:2]]
    for number, model in enumerate(models):
        paging.opened(f"m{number}", model, 0)
    asked: list[int] = []
    pages_of = linux.residency

    def counted(address: int, pages: int) -> Any:
        asked.extend(range(address, address + pages * memory.PAGE_BYTES, memory.PAGE_BYTES))
        return pages_of(address, pages)

    monkeypatch.setattr(linux, "residency", counted)
    (found,) = measured(paging, models[1])
    assert found.packed_bytes > 0
    assert found.shared_bytes > 0
    ends = 2 * sum(len((*shard.working, *shard.second)) for shard in paging._open[models[1]].paged.places)
    assert len(asked) - len(set(asked)) < ends, "only where two places meet in a page"
    for model in models:
        close(paging, model)


def test_a_second_open_has_nothing_private(path: Path, pantry: Pantry, paging: LlamaPaging) -> None:
    pack_file(path, pantry)
    model = Model.open([path], ModelParams(use_extra_bufts=True, shelf=paging.shelf([path])))
    opened = paging.opened("a", model, -5)
    assert opened.facts().private_bytes == 0
    close(paging, model)


def test_equal_places_are_the_same_memory(family: list[Path], pantry: Pantry, paging: LlamaPaging) -> None:
    models = [open_shelved(path, pantry) for path in family]
    facts = [paging.opened(f"m{number}", model, 0).facts() for number, model in enumerate(models)]
    everything = {place: nbytes for one in facts for place, nbytes in one.places.items()}
    assert sum(everything.values()) < 2 * sum(facts[0].places.values())
    shared = facts[0].places.keys() & facts[1].places.keys() & facts[2].places.keys()
    assert shared
    found = measured(paging, *models)
    output = next(shard for shard in found[0].shards if shard.name == "output")
    assert output.shared_with == ("m1", "m2")
    assert found[1].elsewhere_bytes > 0
    close(paging, models[0])
    found = measured(paging, *models[1:])
    assert next(shard for shard in found[0].shards if shard.name == "output").shared_with == ("m2",)
    for model in models[1:]:
        close(paging, model)


def shared(one: OpenModel, other: OpenModel) -> dict[Any, int]:
    """The places that both use."""
    return {place: nbytes for place, nbytes in one.facts().places.items() if place in other.facts().places}


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_what_is_shared_is_known_before_the_open(
    tmp_path: Path, pantry: Pantry, paging: LlamaPaging, kind: str
) -> None:
    base = small_model(tmp_path / "base.gguf", kind)
    tuned = fine_tune(tmp_path / "tuned.gguf", base)
    for path in (base, tuned):
        learn(path, pantry)
        pack_file(path, pantry)
    foreseen = paging.foreseen([tuned])
    assert foreseen() == {}
    models = [open_shelved(base, pantry)]
    opened = [paging.opened("base", models[0], 0)]
    found = foreseen()
    models.append(open_shelved(tuned, pantry))
    opened.append(paging.opened("tuned", models[1], 0))
    assert found == shared(*opened)
    assert sum(found.values()) > 0.5 * sum(opened[0].facts().places.values())
    for model in models:
        close(paging, model)
    assert foreseen() == {}


def test_only_what_is_stored_is_foreseen(family: list[Path], pantry: Pantry, paging: LlamaPaging) -> None:
    foreseen = paging.foreseen(family[1:2])
    pantry.store.remove(pantry.store.entries())
    paging._packer._is_busy = lambda: True
    model = open_shelved(family[0], pantry)
    opened = paging.opened("base", model, 0)
    assert opened.facts().private_bytes > 0
    private = foreseen()
    assert private.keys() <= opened.facts().places.keys()
    paging._packer._is_busy = lambda: False
    wait_for_packing(paging, model)
    assert sum(foreseen().values()) > sum(private.values())
    close(paging, model)


def test_nothing_is_foreseen_of_files_that_are_not_known(path: Path, tmp_path: Path, pantry: Pantry) -> None:
    tuned = fine_tune(tmp_path / "tuned.gguf", path)
    learn(path, pantry)
    for with_store in (pantry, None):
        with closing(LlamaPaging(with_store)) as paging:
            model = Model.open([path])
            paging.opened("a", model, 0)
            assert paging.foreseen([tuned])() == {}
            assert paging.foreseen([tmp_path / "gone.gguf"])() == {}
            close(paging, model)


def test_a_file_that_was_replaced_while_open_lends_nothing(
    path: Path, tmp_path: Path, pantry: Pantry, paging: LlamaPaging
) -> None:
    other = fine_tune(tmp_path / "other.gguf", path, change=1.0)
    pack_file(path, pantry)
    model = open_shelved(path, pantry)
    rename_over(path, small_model(tmp_path / "new.gguf", seed=5))
    learn(path, pantry)
    paging.opened("a", model, 0)
    assert paging.foreseen([path])() == {}
    assert paging.foreseen([other])() == {}
    close(paging, model)


def test_who_was_opened_before_its_file_was_known_lends_what_others_take(
    tmp_path: Path, pantry: Pantry, paging: LlamaPaging
) -> None:
    """It maps tensors itself that others map from a file that is known for longer."""
    base = small_model(tmp_path / "base.gguf", "Q8_0")
    tuned = fine_tune(tmp_path / "tuned.gguf", base)
    learn(base, pantry)
    model = open_shelved(tuned, pantry)
    opened = paging.opened("tuned", model, 0)
    wait_for_packing(paging, model)
    paging._publish()
    assert opened.contents
    foreseen = paging.foreseen([base])()
    other = open_shelved(base, pantry)
    assert foreseen == shared(opened, paging.opened("base", other, 0)) == {}
    for each in (other, model):
        close(paging, each)


def test_each_expert_knows_with_whom_it_is_shared(
    tmp_path: Path, pantry: Pantry, paging: LlamaPaging
) -> None:
    base = small_model(tmp_path / "base.gguf", "Q4_0", MIXTURE)
    same = fine_tune(tmp_path / "same.gguf", base, change=0)
    for path in (base, same):
        pack_file(path, pantry)
    models = [open_shelved(path, pantry) for path in (base, same)]
    for number, model in enumerate(models):
        paging.opened(f"m{number}", model, 0)
    found = measured(paging, *models)[0]
    experts = [shard for shard in found.shards if " expert " in shard.name]
    assert len(experts) == 2 * MIXTURE.experts
    assert {shard.shared_with for shard in experts} == {("m1",)}
    for model in models:
        close(paging, model)


def test_models_that_are_not_open_are_not_measured(path: Path, paging: LlamaPaging) -> None:
    with Model.open([path]) as model:
        assert paging.measure([model]) == [None]
        assert paging.page_out(model, 0, []) == 0
        paging.bring_back(model)
        paging.allow_second(model, False)
        paging.set_limit(model, 5)
        paging.closing(model)


def test_weights_whose_places_are_not_known_are_measured_as_files(path: Path, paging: LlamaPaging) -> None:
    with Model.open([path], ModelParams(lazy=False)) as model:
        opened = paging.opened("a", model, 0)
        assert opened.packing is None
        (found,) = paging.measure([model])
        resident = memory.file_resident_bytes(path)
        assert found == (None if resident is None else Residency(resident))
        assert opened.facts().places == {}
        paging.closing(model)


def test_everybody_elses_pages_stay_when_a_model_closes(
    family: list[Path], pantry: Pantry, paging: LlamaPaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [open_shelved(path, pantry) for path in family]
    opened = [paging.opened(f"m{number}", model, 0) for number, model in enumerate(models)]
    spared: list[list[Any]] = []
    monkeypatch.setattr(
        "shardload.llama.paged.PagedWeights.page_out",
        lambda self, keep_bytes, sparing: spared.append(list(sparing)) or keep_bytes,
    )
    paging.page_out_all(models[1])
    assert paging.page_out(models[0], 7, [models[0], models[2]]) == 7
    assert spared == [[opened[0].paged, opened[2].paged], [opened[2].paged]]
    for model in models:
        close(paging, model)


def test_a_model_that_opens_with_a_limit_streams_at_once(
    path: Path, pantry: Pantry, paging: LlamaPaging
) -> None:
    expected = said_by(path, PACKED)
    model = open_shelved(path, pantry, pack_at_once=False)
    opened = paging.opened("a", model, 0, 2**18)
    assert opened.paged.streams
    assert opened.facts().private_bytes == 0
    wait_for_packing(paging, model)
    assert model.unstored_tensors == []
    assert say(model) == expected
    paging.set_limit(model, None)
    assert not opened.paged.streams
    assert say(model) == expected
    close(paging, model)
    assert not any(thread.name == "shardload-stream" for thread in threading.enumerate())


def test_an_open_that_fails_leaves_nothing_behind(
    path: Path, paging: LlamaPaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no more threads")

    monkeypatch.setattr("shardload.llama.packing.Packer.pack", fail)
    with Model.open([path], PACKED) as model:
        with pytest.raises(OSError, match="no more"):
            paging.opened("a", model, 0, 2**18)
        assert paging._open == {}
        assert model.paged is None
    assert not any(thread.name == "shardload-stream" for thread in threading.enumerate())


def test_closing_does_not_wait_for_a_pause(path: Path, pantry: Pantry, tmp_path: Path) -> None:
    other = small_model(tmp_path / "other.gguf", "Q4_0")
    with closing(LlamaPaging(pantry, None, lambda: True)) as paging:
        models = [open_shelved(one, pantry) for one in (path, other)]
        for model in models:
            paging.opened("a", model, 0)
        for model in reversed(models):
            close(paging, model)
    assert pantry.store.entries() == []


class Choice:
    """Knows that prompts of these types are faster from the file."""

    def __init__(self, *types: str) -> None:
        speeds = Speeds(file={1: 1.0, 150: 100.0}, packed={1: 10.0, 150: 10.0})
        self.table = LayoutTable(dict.fromkeys(types, speeds))
        self.weights: dict[str, int] = {}

    def for_types(self, weights: dict[str, int]) -> Any:
        self.weights = weights
        return lambda tokens: self.table.choose(weights, tokens)

    def measure(self, _types: Any, **_: Any) -> None:
        pass


def test_steps_read_what_was_measured_to_be_faster(path: Path, pantry: Pantry) -> None:
    choice: Any = Choice("q4_K")
    pack_file(path, pantry)
    with closing(LlamaPaging(pantry, choice)) as paging:
        model = open_shelved(path, pantry)
        opened = paging.opened("a", model, 0)
        packed_bytes = sum(placed.file.length for placed in model.tensors if placed.packing)
        assert choice.weights == {"q4_K": packed_bytes}
        assert [opened.paged.layout_for(tokens) for tokens in (1, 150)] == ["packed", "file"]
        paging.allow_second(model, False)
        assert opened.paged.layout_for(150) == "packed"
        paging.allow_second(model, True)
        with speaking(model) as speak, Model.open([path]) as plain, speaking(plain) as speak_plainly:
            said, plainly = (one(6, [1, *range(270, 420)]) for one in (speak, speak_plainly))
        assert (said.after_prompt == plainly.after_prompt).all()
        assert said.tokens == plainly.tokens
        assert (said.last != plainly.last).any()
        close(paging, model)


def test_nothing_runs_without_a_store_and_a_choice(path: Path) -> None:
    with closing(LlamaPaging()) as paging:
        model = Model.open([path], PACKED)
        opened = paging.opened("a", model, 0)
        assert opened.packing is not None
        assert opened.packing.done.is_set()
        assert paging.shelf([path]) is None
        close(paging, model)
        assert not any(thread.name == "shardload-packer" for thread in threading.enumerate())
    paging.close()


def test_opening_and_closing_leaks_nothing(path: Path, pantry: Pantry, paging: LlamaPaging) -> None:
    def counts() -> tuple[int, int]:
        maps = sum("/store/" in line or str(path) in line for line in open_maps())
        return len(os.listdir("/proc/self/fd")), maps

    def once() -> None:
        model = open_shelved(path, pantry)
        paging.opened("a", model, 0)
        wait_for_packing(paging, model)
        assert say(model, 2).tokens
        close(paging, model)

    once()
    once()
    before = counts()
    for _ in range(5):
        once()
    assert counts() == before
    assert before[1] == 0


def open_maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
