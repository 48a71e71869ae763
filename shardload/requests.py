"""What can be asked of the service, and the ranges that a request's values must keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec

from shardload.chat.messages import Message
from shardload.config import FLOAT_LEAST, FLOAT_LIMIT
from shardload.engine.sampling import SamplingParams
from shardload.errors import RequestError

Prompt = str | Sequence[int]
"""Text, or the tokens that a client made of it."""

CHOICES_LIMIT = 128
STOPS_LIMIT = 16
TOP_LOGPROBS_LIMIT = 20
SEEDS = 2**32 - 1
"""How many seeds there are: llama.cpp keeps 32 bits and takes the last value for "draw one"."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate; None leaves a value to the model's own defaults, and those to the engine's.

    ``top_logprobs`` of 0 asks for the log-probabilities of the chosen tokens alone. ``keep_alive_seconds``
    below 0 keeps the model open for ever after this request, 0 closes it as soon as it is idle.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    grammar: str | None = None
    stop: tuple[str, ...] | None = None
    ignore_eos: bool | None = None
    top_logprobs: int | None = None
    keep_alive_seconds: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Options from a mapping as configuration and keyword arguments give it; raises RequestError."""
        shaped = {name: value for name, value in values.items() if value is not None}
        for name in shaped:
            if name not in _NAMES:
                raise RequestError(
                    f"there is no option {name!r}; known are {', '.join(sorted(_NAMES))}", param=name
                )
        if isinstance(stop := shaped.get("stop"), str):
            shaped["stop"] = (stop,)
        elif isinstance(stop, list):
            shaped["stop"] = tuple(stop)
        if (bias := shaped.get("logit_bias")) is not None:
            shaped["logit_bias"] = _logit_bias(bias)
        options = cls(**shaped)
        options.check()
        return options

    def over(self, defaults: Options) -> Options:
        """These options, with those of ``defaults`` where these say nothing."""
        own = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        return replace(defaults, **own)

    def check(self) -> None:
        """Raise RequestError naming the first option that is out of its range."""
        for name, kind, low, high in _RANGES:
            _check_number(name, getattr(self, name), kind, low, high)
        for name in ("top_p", "typical_p", "repeat_penalty"):
            if (value := getattr(self, name)) is not None and value < FLOAT_LEAST:
                raise RequestError(f"{name} must be more than 0", param=name)
        _check_stops(self.stop)
        for _, bias in self.logit_bias or ():
            _check_number("logit_bias", bias, float, -math.inf, math.inf)
        if self.ignore_eos is not None and not isinstance(self.ignore_eos, bool):
            raise RequestError("ignore_eos must be true or false", param="ignore_eos")
        if self.grammar is not None and not isinstance(self.grammar, str):
            raise RequestError("grammar must be a string of GBNF", param="grammar")

    def sampling(self, *, offset: int = 0, grammar: str | None = None) -> SamplingParams:
        """The engine's parameters; the seed is that of the choice ``offset`` places after the first."""
        given = {name: value for name in _SAMPLING_NAMES if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            given["seed"] = (self.seed + offset) % SEEDS
        if grammar is not None:
            given["grammar"] = grammar
        return SamplingParams(**given)


_NAMES = frozenset(each.name for each in fields(Options))
_SAMPLING_NAMES = tuple(sorted(_NAMES & {each.name for each in fields(SamplingParams)}))
_INT_LIMIT = 2**31 - 1
_RANGES: tuple[tuple[str, type, float, float], ...] = (
    ("max_tokens", int, 0, _INT_LIMIT),
    ("temperature", float, 0, math.inf),
    ("top_k", int, -1, _INT_LIMIT),
    ("top_p", float, 0, 1),
    ("min_p", float, 0, 1),
    ("typical_p", float, 0, 1),
    ("repeat_penalty", float, 0, math.inf),
    ("repeat_last_n", int, -1, _INT_LIMIT),
    ("presence_penalty", float, -math.inf, math.inf),
    ("frequency_penalty", float, -math.inf, math.inf),
    ("seed", int, 0, SEEDS - 1),
    ("top_logprobs", int, 0, TOP_LOGPROBS_LIMIT),
    ("keep_alive_seconds", float, -math.inf, math.inf),
)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to be continued; ``response_format`` and ``tools`` are in OpenAI's shapes."""

    model: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    response_format: Mapping[str, Any] | None = None
    n: int = 1
    options: Options = field(default_factory=Options)
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tools_text(self) -> str:
        """The tools as templates mostly write them; empty without any."""
        return msgspec.json.encode(self.tools, enc_hook=str).decode() if self.tools else ""

    def check(self) -> None:
        """Raise RequestError naming the first field at fault."""
        if not self.messages:
            raise RequestError("messages must have at least one message", param="messages")
        _check_choices(self.n)
        self.options.check()


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to be continued, ``n`` choices each: choice ``i`` of prompt ``p`` has index ``p * n + i``."""

    model: str
    prompts: Sequence[Prompt]
    n: int = 1
    options: Options = field(default_factory=Options)

    def check(self) -> None:
        """Raise RequestError naming the first field at fault."""
        if not self.prompts:
            raise RequestError("prompt is empty: give at least one", param="prompt")
        _check_choices(self.n)
        if len(self.prompts) * self.n > CHOICES_LIMIT:
            raise RequestError(
                f"{len(self.prompts)} prompts with n of {self.n} are more than {CHOICES_LIMIT} choices",
                param="prompt",
            )
        self.options.check()


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to be turned into vectors, cut to ``dimensions`` where that is given."""

    model: str
    inputs: Sequence[Prompt]
    dimensions: int | None = None
    keep_alive_seconds: float | None = None

    def check(self) -> None:
        """Raise RequestError naming the first field at fault."""
        if not self.inputs:
            raise RequestError("input is empty: give at least one text", param="input")
        _check_number("dimensions", self.dimensions, int, 1, _INT_LIMIT)
        _check_number("keep_alive_seconds", self.keep_alive_seconds, float, -math.inf, math.inf)


Request = ChatRequest | CompletionRequest | EmbeddingRequest


def _check_choices(choices: int) -> None:
    _check_number("n", choices, int, 1, CHOICES_LIMIT)


def _check_number(name: str, value: Any, kind: type, low: float, high: float) -> None:
    if value is None:
        return
    accepted = int if kind is int else (int, float)
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise RequestError(f"{name} must be {'a whole number' if kind is int else 'a number'}", param=name)
    if not low <= value <= high or not abs(value) <= FLOAT_LIMIT:
        if math.isfinite(high):
            bounds = f"between {low} and {high}"
        else:
            bounds = f"at least {low}" if low == 0 and not value >= 0 else "finite in 32 bits"
        raise RequestError(f"{name} must be {bounds}, not {value}", param=name)


def _check_stops(stops: Sequence[str] | None) -> None:
    if stops is None:
        return
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("stop must be strings that are not empty", param="stop")
    if len(stops) > STOPS_LIMIT:
        raise RequestError(f"stop has {len(stops)} strings, at most {STOPS_LIMIT} are taken", param="stop")


def _logit_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    pairs = bias.items() if isinstance(bias, Mapping) else bias
    try:
        return tuple((int(token), value) for token, value in pairs)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("logit_bias must give a number to each token id", param="logit_bias") from error
