"""What is asked of an engine, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from shardload.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One continuation of one prompt.

    ``max_tokens`` of None generates until the model stops or the context is full. ``top_logprobs`` of None
    asks for no log-probabilities, 0 for those of the chosen tokens alone.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token and the likeliest ones at its place, by the model's own (raw) distribution.

    ``top`` holds (token, bytes, log-probability), likeliest first.
    """

    token: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a finished sequence; the end token is not counted."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a sequence's time went: waiting for a slot, until its first token, and from there to its end."""

    queued_seconds: float
    prompt_seconds: float
    decode_seconds: float

    @property
    def first_token_seconds(self) -> float:
        """From submission to the first token."""
        return self.queued_seconds + self.prompt_seconds


@dataclass(frozen=True, slots=True)
class Finish:
    """Why and how a sequence ended."""

    reason: Literal["stop", "length"]
    stop_string: str | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a sequence's text and the tokens it came from; ``finish`` is on the last one only.

    Text that may become part of a stop string, or that ends inside a character, comes with a later delta.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
