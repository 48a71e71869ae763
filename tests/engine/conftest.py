from __future__ import annotations

from collections.abc import Iterator

import pytest
from turned_lane import TurnedLane

from shardload.engine import Lane


@pytest.fixture
def bench() -> Iterator[TurnedLane]:
    """A lane that a test turns step by step."""
    lane = Lane(output_limit_tokens=8)
    yield TurnedLane(lane)
    lane.close()
