from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import FakeVocab
from hypothesis import given
from hypothesis import strategies as st

from shardload.library.estimate import Prediction
from shardload.library.holdings import Instance, Weights
from shardload.library.ledger import Ledger
from shardload.library.opener import Residency, WeightsFacts, WeightsHandle

PLACES = st.sets(st.integers(0, 9)).map(lambda found: {each: each + 1 for each in found})
STATES = st.one_of(st.none(), st.tuples(st.just("resident"), st.floats(0, 1)), st.tuples(st.just("limit")))


def key_of(number: int) -> Any:
    return ((0, number, 0, 0),)


def add(ledger: Ledger, places: dict[int, int], state: tuple[Any, ...] | None = None) -> Weights:
    """Weights that count whole, or with a share that was measured, or with one that they may have."""
    key, size = key_of(len(ledger.weights)), sum(places.values())
    weights = Weights(key, "open", size, 3, places=dict[Any, int](places), state="open")
    if state is not None and state[0] == "resident":
        weights.measured, weights.measured_at = Residency(int(state[1] * size)), 0.0
    elif state is not None:
        weights.limit_bytes = size // 2
    ledger.weights[key] = weights
    return weights


def instance_of(places: dict[int, int], weights_bytes: int) -> Instance:
    """Somebody's wish for weights that are not open."""
    prediction = Prediction(weights_bytes, 5, 7, 11, read_places=lambda: dict[Any, int](places))
    return Instance(
        ((key_of(-1), 256, 1, "f16"), "generate"), cast(Any, SimpleNamespace(name="new")), prediction, 0.0
    )


@given(
    st.lists(st.tuples(PLACES, STATES), max_size=4),
    PLACES,
    st.integers(0, 20),
    st.one_of(st.none(), st.integers(0, 40)),
)
def test_what_an_open_is_said_to_add_is_what_it_adds(
    there: list[tuple[dict[int, int], Any]], foreseen: dict[int, int], rest: int, limit: int | None
) -> None:
    ledger = Ledger()
    for places, state in there:
        add(ledger, places, state)
    instance = instance_of(foreseen, sum(foreseen.values()) + rest)
    before, added = ledger.used_bytes(), ledger.extra_bytes(instance, limit)
    ledger.instances[instance.key] = instance
    ledger.begin_open(instance, limit)
    assert ledger.used_bytes() == before + added


@pytest.mark.parametrize(
    ("resident", "added"),
    [
        pytest.param(1.0, 20, id="all that is shared is there"),
        pytest.param(0.5, 20 + 50, id="at least 30 of what is shared are there"),
        pytest.param(0.1, 20 + 80, id="what is there may be its own"),
    ],
)
def test_idle_weights_lend_what_must_be_there(resident: float, added: int) -> None:
    ledger = Ledger()
    add(ledger, {1: 80, 2: 20}, ("resident", resident))
    assert ledger.extra_bytes(instance_of({1: 80}, 100)) == added + 5 + 7 + 11


def test_what_was_foreseen_wrongly_counts_from_the_open_on() -> None:
    ledger = Ledger()
    add(ledger, {1: 80, 2: 20})
    before = ledger.used_bytes()
    instance = instance_of({1: 80}, 100)
    ledger.instances[instance.key] = instance
    ledger.begin_open(instance)
    assert ledger.used_bytes() - before == 20 + 5 + 7 + 11
    facts = WeightsFacts(5, 100, places={3: 80, 4: 20})
    weights = ledger.weights[key_of(-1)]
    ledger.finish_open_weights(weights, WeightsHandle(cast(Any, FakeVocab()), lambda: facts), 0.0, 1.0)
    assert ledger.used_bytes() - before == 100 + 5 + 7 + 11


def test_what_is_shared_with_pinned_models_is_not_in_the_way() -> None:
    ledger, beside = Ledger(), instance_of({1: 80, 3: 10}, 100)
    pinned: dict[Instance, str] = {}
    for places in ({1: 80, 2: 20}, {1: 80, 3: 10, 4: 10}):
        instance = instance_of({}, 100)
        instance.weights = add(ledger, places)
        pinned[instance] = str(len(pinned))
    assert ledger.pinned_bytes(pinned.items(), beside) == {"0": 20 + 3, "1": 10 + 3}
    assert ledger.pinned_bytes(pinned.items(), instance_of({}, 100)) == {"0": 100 + 3, "1": 20 + 3}
