from __future__ import annotations

import pytest

from shardload.errors import AllPinned, InsufficientMemory
from shardload.library.fitting import least_share_bytes, must_stream, renamed


def test_least_share() -> None:
    assert least_share_bytes(1000, 10) == 50
    assert least_share_bytes(1000, 120) == 120
    assert least_share_bytes(1000, 5000) == 1000
    assert least_share_bytes(0, 0) == 0


def test_fits_whole_or_streaming_or_not() -> None:
    assert not must_stream("a", 80, 20, 10, 100, {})
    assert not must_stream("a", 40, 20, 10, 100, {"b": 40})
    assert must_stream("a", 80, 20, 10, 99, {})
    assert must_stream("a", 80, 20, 10, 100, {"b": 70})
    with pytest.raises(AllPinned, match="pinned models hold: b, c") as caught:
        must_stream("a", 80, 20, 10, 100, {"c": 60, "b": 11})
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (30, 100)
    with pytest.raises(InsufficientMemory, match="needs 30 B"):
        must_stream("a", 80, 20, 10, 29, {"b": 40})


def test_each_request_has_an_error_of_its_own() -> None:
    pinned = renamed(AllPinned("a", 30, 20, ["x"]), "b")
    assert isinstance(pinned, AllPinned)
    assert (pinned.name, pinned.pinned) == ("b", ("x",))
    assert renamed(InsufficientMemory("a", 30, 20), "b").name == "b"
