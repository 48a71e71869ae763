from __future__ import annotations

import pytest

from shardload.engine.runner import Run
from shardload.llama.batch import Batch
from shardload_native.library import load


@pytest.fixture
def batch() -> Batch:
    return Batch(load().ffi, 16, 4)


def rows_of(batch: Batch) -> list[tuple[int, int, int, bool]]:
    native = batch.native
    assert all(native.n_seq_id[at] == 1 for at in range(native.n_tokens))
    return [
        (native.token[at], native.pos[at], native.seq_id[at][0], bool(native.logits[at]))
        for at in range(native.n_tokens)
    ]


def test_runs_are_laid_out_one_after_the_other(batch: Batch) -> None:
    rows = batch.fill(
        [
            Run(2, 5, [70, 71, 72], "last"),
            Run(0, 9, [50], "last"),
            Run(3, 0, (60, 61), "none"),
            Run(1, 1, [4], "none"),
        ]
    )
    assert rows == [2, 3]
    assert rows_of(batch) == [
        (70, 5, 2, False),
        (71, 6, 2, False),
        (72, 7, 2, True),
        (50, 9, 0, True),
        (60, 0, 3, False),
        (61, 1, 3, False),
        (4, 1, 1, False),
    ]


def test_a_batch_forgets_the_one_before(batch: Batch) -> None:
    batch.fill([Run(1, 0, list(range(16)), "all")])
    assert batch.fill([Run(0, 3, [1, 2], "none"), Run(2, 4, [9], "all")]) == [2]
    assert rows_of(batch) == [(1, 3, 0, False), (2, 4, 0, False), (9, 4, 2, True)]


def test_every_row(batch: Batch) -> None:
    assert batch.fill([Run(0, 0, [1, 2], "none"), Run(1, 0, [3], "none")], every_row=True) == [0, 1, 2]
    assert [wanted for *_, wanted in rows_of(batch)] == [True, True, True]


@pytest.mark.parametrize("count", [0, 17])
def test_a_batch_has_its_size(batch: Batch, count: int) -> None:
    with pytest.raises(ValueError, match="room for 1 to 16"):
        batch.fill([Run(0, 0, [1] * count, "none")])
