from __future__ import annotations

from collections.abc import Iterator

import pytest
from turned_lane import TurnedLane

from shardload.engine import Lane, Parking, ParkingLot


@pytest.fixture
def bench() -> Iterator[TurnedLane]:
    """A lane that a test turns step by step."""
    lane = Lane(output_limit_tokens=8)
    yield TurnedLane(lane)
    lane.close()


@pytest.fixture
def lot() -> Iterator[ParkingLot]:
    """A place for parked conversations, in memory only."""
    lot = ParkingLot(None, 10**6, 0)
    yield lot
    lot.close()


@pytest.fixture
def parking(lot: ParkingLot) -> Parking:
    """The part of it for one model's conversations."""
    return lot.of("weights")
