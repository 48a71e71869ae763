"""A request's hold on an open model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from shardload.errors import HandleClosed
from shardload.library.entry import ModelEntry
from shardload.library.opener import InstanceHandle, WeightsHandle

if TYPE_CHECKING:
    from shardload.engine.lane import Engine
    from shardload.library.opener import VocabLike

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpenProgress:
    """How far a model is on its way to a waiting request; ``fraction`` counts the opening from 0 to 1."""

    name: str
    stage: Literal["waiting", "opening"]
    fraction: float


class Lease:
    """Keeps a model open until `release`; of the event loop that took it."""

    def __init__(
        self,
        entry: ModelEntry,
        weights: WeightsHandle,
        instance: InstanceHandle,
        release: Callable[[], None],
        *,
        queue_seconds: float,
        load_seconds: float,
    ) -> None:
        self.entry = entry
        """The model as it was named, by the catalog of this moment: a swap may have changed it meanwhile."""
        self.queue_seconds, self.load_seconds = queue_seconds, load_seconds
        self._weights, self._instance = weights, instance
        self._release: Callable[[], None] | None = release

    def __repr__(self) -> str:
        return f"<Lease on {self.entry.name!r}{'' if self._release else ', released'}>"

    @property
    def engine(self) -> Engine:
        """Where sequences are submitted."""
        return self._held(self._instance).engine

    @property
    def vocab(self) -> VocabLike:
        """The vocabulary; threads may share it."""
        return self._held(self._weights).vocab

    @property
    def ctx_tokens(self) -> int:
        """Tokens that a prompt and its answer have together."""
        return self._instance.ctx_tokens

    @property
    def chat_template(self) -> str | None:
        """The source of the template to use."""
        return self.entry.chat_template

    @property
    def bos(self) -> str:
        """The text of the token that begins a prompt; empty without one."""
        return _text(self.vocab, self.vocab.bos)

    @property
    def eos(self) -> str:
        """The text of the token that ends an answer; empty without one."""
        return _text(self.vocab, self.vocab.eos)

    def release(self) -> None:
        """Give the hold back; idempotent."""
        if self._release is not None:
            release, self._release = self._release, None
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        # Not released here: this may run on any thread, and the ledger belongs to the event loop.
        if getattr(self, "_release", None) is not None:
            warnings.warn(f"{self!r} was never released", ResourceWarning, source=self, stacklevel=2)

    def _held(self, value: T) -> T:
        if self._release is None:
            raise HandleClosed(repr(self))
        return value


def _text(vocab: VocabLike, token: int | None) -> str:
    if token is None or token < 0:
        return ""
    return vocab.piece(token, special=True).decode("utf-8", "replace")
