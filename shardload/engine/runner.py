"""What the lane needs of a model's context, so that the engine runs without llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shardload.engine.request import Delta
    from shardload.engine.sampling import SamplingParams
    from shardload.errors import ShardloadError


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of the sequence in ``slot``, at positions ``start`` onwards.

    ``want`` says for which of them outputs are computed.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    want: Literal["none", "last", "all"]


class TokenSampler(Protocol):
    """Chooses the tokens of one sequence; used on the lane thread only."""

    def sample(self, row: int) -> int:
        """Choose from the logits of an output row of the last decode, and remember the choice."""
        ...

    def close(self) -> None: ...


class Runner(Protocol):
    """One context: KV slots and the computation over them.

    Every method is called on the lane thread, save ``close``, which the lane never calls.
    """

    @property
    def ctx_tokens(self) -> int:
        """KV cells, shared by all slots."""
        ...

    @property
    def slots(self) -> int: ...

    @property
    def batch_tokens(self) -> int:
        """The most tokens that one decode takes."""
        ...

    @property
    def n_vocab(self) -> int: ...

    @property
    def pooled(self) -> bool:
        """Whether ``embedding`` gives a sequence's vector; without pooling ``token_embeddings`` gives all."""
        ...

    def decode(self, runs: Sequence[Run]) -> bool:
        """Compute one batch; False when the KV cache has no room, in which case nothing changed.

        Output rows are counted in the order of the runs. Raises DecodeFailed.
        """
        ...

    def logits(self, row: int) -> NDArray[np.float32]:
        """The raw logits of an output row, valid until the next decode."""
        ...

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> TokenSampler:
        """A sampler that has seen ``history``. Raises LoadFailed, or RequestError for a bad grammar."""
        ...

    def forget(self, slot: int, start: int = 0) -> bool:
        """Drop a slot's KV from position ``start`` on; False where the model cannot go back in part."""
        ...

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let the empty slot ``target`` see the first tokens of ``source``, without copying them.

        Raises ValueError where slots have separate caches.
        """
        ...

    @property
    def state_kind(self) -> str:
        """All but the weights that decides whether a saved state fits: its numbers, who wrote it."""
        ...

    def state_bytes(self, slot: int) -> int:
        """How much ``save`` would give."""
        ...

    def save(self, slot: int) -> memoryview:
        """The KV of a slot as it is: a copy. Raises NativeError."""
        ...

    def restore(self, slot: int, state: memoryview) -> bool:
        """Replace the KV of a slot by a saved one; False where it does not fit, and the slot is empty."""
        ...

    def give_back(self) -> int:
        """Give the memory of a KV cache without content back to the system until it is used; the bytes.

        0 where something is in the cache, or where it cannot be done.
        """
        ...

    def embedding(self, slot: int) -> NDArray[np.float32]:
        """The pooled embedding of a slot's sequence in the last decode: a copy."""
        ...

    def token_embeddings(self, rows: int) -> NDArray[np.float32]:
        """The first ``rows`` output rows of the last decode, unpooled."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens."""
        ...

    def is_end(self, token: int) -> bool: ...

    def divide_cores(self, parts: int) -> None:
        """From now on compute with one of so many equal parts of the cores; 1 is all of them."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Takes a sequence's events on the lane thread; it must not block.

    A sink with a ``flush`` method has it called once after each step that gave events to any sink with the
    same ``flush``: many sequences wake one event loop once.
    """

    def __call__(self, events: Sequence[Delta | ShardloadError]) -> None: ...
