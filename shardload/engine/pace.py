"""How long an engine's steps take, measured, and what follows for the next ones."""

from __future__ import annotations

# What a chunk of a prompt may cost those who generate meanwhile, and those who may come while nobody does.
SHARED_CHUNK_SECONDS = 0.3
LONELY_CHUNK_SECONDS = 2.0
# Less than this computes hardly faster, more helps hardly.
CHUNK_TOKENS = range(16, 129)
# A prompt that nobody waits behind is not cut into crumbs because of a step that had to wait itself.
LEAST_LONELY_TOKENS = 64
# How much of an average the latest measurement is.
WEIGHT = 0.25


class Pace:
    """Moving averages over the steps of one engine; lane only."""

    __slots__ = ("_prompt_token_seconds", "generation_seconds")

    def __init__(self) -> None:
        self.generation_seconds = 0.0
        """A step in which each sequence generates one token, on all cores; 0 before the first."""
        self._prompt_token_seconds = 0.0

    def note(self, tokens: int, sequences: int, seconds: float, parts: int) -> None:
        """A step of so many tokens took so long on one of so many parts of the cores."""
        if tokens == sequences:
            self.generation_seconds = _averaged(self.generation_seconds, seconds / parts)
        if tokens >= CHUNK_TOKENS[0]:
            # A step that was faster shows what is possible; a slower one may have waited for pages.
            measured = seconds / parts / tokens
            known = self._prompt_token_seconds
            self._prompt_token_seconds = min(measured, _averaged(known, measured))

    def shared_chunk_tokens(self) -> int:
        """The tokens of a prompt that others may be made to wait for."""
        return self._chunk_tokens(SHARED_CHUNK_SECONDS, CHUNK_TOKENS[-1])

    def lonely_chunk_tokens(self, most: int) -> int:
        """The tokens of a prompt at once while nobody else computes."""
        return min(most, max(LEAST_LONELY_TOKENS, self._chunk_tokens(LONELY_CHUNK_SECONDS, most)))

    def _chunk_tokens(self, seconds: float, most: int) -> int:
        if self._prompt_token_seconds * most <= seconds:
            return most
        return max(CHUNK_TOKENS[0], int(seconds / self._prompt_token_seconds))


def _averaged(known: float, measured: float) -> float:
    return (1 - WEIGHT) * known + WEIGHT * measured if known else measured
