"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The choices of a sampler chain; the defaults are those of llama-server.

    A ``temperature`` of 0 or less is greedy. With a ``seed`` the same prompt gives the same text, whatever
    else is running: such a request has its model's context to itself while it runs. Without one each request
    draws its own.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    grammar: str | None = None

    @property
    def takes_the_maximum(self) -> bool:
        """Whether the next token is plainly the one with the largest raw logit.

        As in llama-cpp-python that may be one which the model's file suppresses; samplers never choose those.
        """
        return (
            self.temperature <= 0
            and self.repeat_penalty == 1.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and not self.logit_bias
            and self.grammar is None
        )
