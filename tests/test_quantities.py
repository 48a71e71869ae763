from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.quantities import parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1, 1),
        ("4096", 4096),
        ("12GiB", 12 * 1024**3),
        ("12gb", 12 * 1000**3),
        ("1.5 G", 1536 * 1024**2),
        ("2m", 2 * 1024**2),
        ("700 B", 700),
        ("1TiB", 1024**4),
    ],
)
def test_parse_bytes(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "12 XB", "1e9", "-1", -1, 0, "0", True, None, "12iB", "1" * 30, 1.5]
)
def test_parse_bytes_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (300, 300.0),
        ("300", 300.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        (0, 0.0),
        ("0", 0.0),
        (-1, -1.0),
        ("-1", -1.0),
        ("-5m", -1.0),
        (-0.5, -1.0),
        (" 2d ", 172800.0),
        (1e-7, 1e-7),
    ],
)
def test_parse_duration(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "5 parsecs", "m", True, None, float("nan"), float("inf"), "5m3", [], "--1"]
)
def test_parse_duration_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(1, 2**62))
def test_bytes_round_trip(count: int) -> None:
    assert parse_bytes(count) == pytest.approx(count, rel=1e-15)


@given(st.text(max_size=20))
def test_parsers_raise_nothing_else(text: str) -> None:
    for parse in (parse_bytes, parse_duration):
        with contextlib.suppress(ValueError):
            parse(text)
