"""Cutting long texts for the tokenizer.

llama.cpp looks through the whole text once more for each control token that is written in it, so that a text
of 80,000 of them takes seconds and one of twice as many four times as long. Cut in front of control tokens,
where no token of the text can reach across, the parts have the tokens that the whole text has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from shardload.llama.encodable import CONTROL, UNKNOWN, USER_DEFINED

# Control tokens in one part: few enough to be quick, enough to make the parts worth their calls.
TOKENS_IN_PART = 256
STRIPS_LEFT = 1 << 7


class ControlTokens:
    """The control tokens of a vocabulary, as they are written."""

    def __init__(self, tokens: Iterable[tuple[str, int]]) -> None:
        """Read (text, attributes) of all tokens; one that swallows the blanks before it is no cut."""
        texts = [
            text
            for text, attributes in tokens
            if text and attributes & (UNKNOWN | CONTROL | USER_DEFINED) and not attributes & STRIPS_LEFT
        ]
        texts.sort(key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None

    def parts(self, content: str) -> Iterator[str]:
        """The text in order, in parts of few control tokens each."""
        start = 0
        if self._pattern is not None:
            for number, found in enumerate(self._pattern.finditer(content), 1):
                if number % TOKENS_IN_PART == 0 and found.start() > start:
                    yield content[start : found.start()]
                    start = found.start()
        yield content[start:]
