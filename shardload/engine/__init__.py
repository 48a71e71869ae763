"""The engine: one compute lane on which the sequences of every open model take turns."""

from __future__ import annotations

from shardload.engine.request import Delta, Finish, GenerationRequest, Timings, TokenLogprob, Usage
from shardload.engine.runner import Run, Runner, Sink, TokenSampler
from shardload.engine.sampling import SamplingParams

__all__ = [
    "Delta",
    "Finish",
    "GenerationRequest",
    "Run",
    "Runner",
    "SamplingParams",
    "Sink",
    "Timings",
    "TokenLogprob",
    "TokenSampler",
    "Usage",
]
