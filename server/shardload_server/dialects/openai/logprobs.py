"""Log probabilities in the shapes of the two kinds of completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shardload.engine.request import TokenLogprob

IMPOSSIBLE = -9999.0
"""What stands for minus infinity, which JSON cannot hold."""


class ChatLogprobs:
    """The ``logprobs`` of a chat completion: one object for each token."""

    def body(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The object for some consecutive tokens."""
        return {"content": [self._token(each) for each in logprobs]}

    def _token(self, each: TokenLogprob) -> dict[str, Any]:
        top = [_entry(raw.decode("utf-8", "replace"), raw, logprob) for _, raw, logprob in each.top]
        return {**_entry(each.text, each.raw, each.logprob), "top_logprobs": top}


class CompletionLogprobs:
    """The ``logprobs`` of a text completion: parallel lists, with the offset of each token in the text."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset

    def body(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The object for some consecutive tokens; offsets go on from the call before."""
        offsets = []
        for each in logprobs:
            offsets.append(self._offset)
            self._offset += len(each.text)
        return {
            "tokens": [each.text for each in logprobs],
            "token_logprobs": [_finite(each.logprob) for each in logprobs],
            "top_logprobs": [
                {raw.decode("utf-8", "replace"): _finite(logprob) for _, raw, logprob in each.top}
                for each in logprobs
            ],
            "text_offset": offsets,
        }


def _entry(text: str, raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
