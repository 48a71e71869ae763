"""The engine: one compute lane on which the sequences of every open model take turns."""

from __future__ import annotations

from shardload.engine.lane import Engine, Lane
from shardload.engine.parking import Parking, ParkingLot
from shardload.engine.request import Delta, Finish, GenerationRequest, Timings, TokenLogprob, Usage
from shardload.engine.runner import Run, Runner, Sink, TokenSampler
from shardload.engine.sampling import SamplingParams
from shardload.engine.sequence import Sequence
from shardload.engine.stats import EngineStats
from shardload.engine.stream import DeltaStream

__all__ = [
    "Delta",
    "DeltaStream",
    "Engine",
    "EngineStats",
    "Finish",
    "GenerationRequest",
    "Lane",
    "Parking",
    "ParkingLot",
    "Run",
    "Runner",
    "SamplingParams",
    "Sequence",
    "Sink",
    "Timings",
    "TokenLogprob",
    "TokenSampler",
    "Usage",
]
