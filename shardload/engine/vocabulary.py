"""What tokens say, each asked of the runner once."""

from __future__ import annotations

from shardload.engine.runner import Runner


class Vocabulary:
    """The pieces of the tokens that an engine has produced; lane only."""

    __slots__ = ("_ends", "_pieces", "_runner")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pieces: dict[int, bytes] = {}
        self._ends: set[int] = set()

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        piece = self._pieces.get(token)
        if piece is None:
            if self._runner.is_end(token):
                self._ends.add(token)
            piece = self._pieces[token] = self._runner.piece(token)
        return piece

    def is_end(self, token: int) -> bool:
        """Whether a token whose piece has been asked for ends the text."""
        return token in self._ends
