from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.shards.layouts import LayoutTable, Speeds, decode_tables, encode_tables, machine_key

Q4_K = Speeds(
    {1: 17, 4: 35, 8: 51, 16: 92, 64: 168, 256: 207}, {1: 30, 4: 78, 8: 89, 16: 125, 64: 137, 256: 137}
)
Q4_0 = Speeds({1: 12, 4: 52, 256: 82}, {1: 20, 4: 76, 256: 127})
TABLE = LayoutTable({"q4_K": Q4_K, "Q4_0": Q4_0})


@pytest.mark.parametrize(
    ("tokens", "layout"),
    [(1, "packed"), (16, "packed"), (64, "packed"), (127, "packed"), (128, "file"), (4096, "file")],
)
def test_takes_the_faster_order(tokens: int, layout: str) -> None:
    assert TABLE.choose({"Q4_K": 10}, tokens) == layout
    assert TABLE.choose({"Q4_0": 10}, tokens) == "packed"


def test_types_count_by_their_bytes() -> None:
    assert TABLE.choose({"Q4_K": 99, "Q4_0": 1}, 256) == "file"
    assert TABLE.choose({"Q4_K": 1, "Q4_0": 99}, 256) == "packed"


def test_what_was_not_measured_is_packed() -> None:
    assert TABLE.choose({"Q2_K": 10}, 512) == "packed"
    assert LayoutTable({}).choose({"Q4_K": 10}, 512) == "packed"
    assert TABLE.choose({}, 512) == "packed"
    assert TABLE.choose({"Q4_K": 10, "Q6_K": 1000}, 512) == "file"
    assert TABLE.missing(["Q4_K", "Q2_K"]) == ["Q2_K"]


def test_a_little_faster_is_not_worth_two_layouts_in_memory() -> None:
    table = LayoutTable({"Q4_K": Speeds({512: 104}, {512: 100})})
    assert table.choose({"Q4_K": 1}, 512) == "packed"
    assert LayoutTable({"Q4_K": Speeds({512: 110}, {512: 100})}).choose({"Q4_K": 1}, 512) == "file"


def test_thresholds_are_the_sizes_where_the_choice_turns() -> None:
    (first, start), (second, end) = TABLE.thresholds({"Q4_K": 1})
    assert (first, start, end) == (1, "packed", "file")
    assert TABLE.choose({"Q4_K": 1}, second - 1) == "packed"
    assert TABLE.choose({"Q4_K": 1}, second) == "file"
    assert TABLE.thresholds({"Q4_0": 1}) == ((1, "packed"),)


SPEEDS = st.dictionaries(st.integers(1, 4096), st.floats(1e-3, 1e6), min_size=1, max_size=6)
TABLES = st.dictionaries(
    st.sampled_from(["Q4_K", "q4_0", "MXFP4"]), st.builds(Speeds, SPEEDS, SPEEDS), max_size=3
).map(LayoutTable)


@given(TABLES, st.integers(1, 10_000))
def test_thresholds_say_what_choose_says_at_every_measured_size(table: LayoutTable, tokens: int) -> None:
    types = {"Q4_K": 3, "Q4_0": 2, "MXFP4": 1}
    thresholds = table.thresholds(types)
    assert thresholds[0][0] == 1
    assert [first for first, _ in thresholds] == sorted({first for first, _ in thresholds})
    sizes = {size for one in table.speeds.values() for size in one.file.keys() & one.packed.keys()}
    for size in sizes:
        layout = [layout for first, layout in thresholds if first <= size][-1]
        assert layout == table.choose(types, size)
    assert table.choose(types, tokens) in ("file", "packed")


@given(st.dictionaries(st.text(max_size=5), TABLES, max_size=3))
def test_tables_are_read_as_they_were_written(tables: dict[str, LayoutTable]) -> None:
    read = decode_tables(encode_tables(tables))
    assert {key: table.speeds for key, table in read.items()} == {
        key: table.speeds for key, table in tables.items()
    }


@given(st.binary(max_size=60))
def test_what_is_damaged_holds_nothing(data: bytes) -> None:
    assert decode_tables(data) == {} or data.strip() == b"{}"


@pytest.mark.parametrize(
    "record",
    [
        '{"a": {"Q4_K": {"file": {"0": 1}, "packed": {"1": 1}}}}',
        '{"a": {"Q4_K": {"file": {"1": 0}, "packed": {"1": 1}}}}',
        '{"a": {"Q4_K": {"file": {"1": -1}, "packed": {"1": 1}}}}',
        '{"a": {"Q4_K": {"file": {"x": 1}, "packed": {"1": 1}}}}',
        '{"a": {"Q4_K": {"file": {"1": 1}}}}',
        "[]",
    ],
)
def test_impossible_figures_are_not_taken(record: str) -> None:
    assert decode_tables(record.encode()) == {}


def test_more_speeds_replace_and_add() -> None:
    table = TABLE.with_speeds({"q4_k": Q4_0, "Q2_K": Q4_0})
    assert table.speeds.keys() == {"Q4_K", "Q4_0", "Q2_K"}
    assert table.speeds["Q4_K"] == Q4_0
    assert TABLE.speeds["Q4_K"] == Q4_K


def test_every_number_of_threads_has_its_own_key() -> None:
    assert machine_key("b", 1) != machine_key("b", 2) != machine_key("c", 2)
