"""How far a running step has come, told by llama.cpp itself and without a line of Python in between."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from shardload.llama.handle import Handle
from shardload_native.semaphore import Semaphore

if TYPE_CHECKING:
    from shardload_native.library import Llama


class Cursor(Handle):
    """Counts the nodes of the graph that a context computes.

    llama.cpp asks an abort callback after every node, on its first thread: here that is the C library's
    ``sem_post``, which counts and answers "go on". Counting costs some nanoseconds per node. A semaphore
    that is full would answer "stop" after two thousand million nodes, so every step begins with `begin()`.

    Belongs to one context and is closed before it, both on the thread that computes; ``nodes`` and
    ``progress`` may be read on any thread. Raises OSError where the system has no such semaphore.
    """

    def __init__(self, context_pointer: Any, llama: Llama) -> None:
        """Attach to a context that is not computing."""
        super().__init__("cursor of a context", None)
        self._llama, self._context = llama, context_pointer
        self._semaphore = Semaphore()
        self._kind: Hashable = None
        self._passes = 1
        # Nodes of one pass over the layers, by kind of step.
        self._expected: dict[Hashable, int] = {}
        callback = llama.ffi.cast("ggml_abort_callback", self._semaphore.post_address)
        data = llama.ffi.cast("void *", self._semaphore.address)
        llama.lib.llama_set_abort_callback(context_pointer, callback, data)
        self._handle = self._semaphore

    def begin(self, kind: Hashable = None, passes: int = 1) -> None:
        """Count from zero: a step of that kind comes, which goes over all layers so many times.

        The graphs of one kind are alike, a prompt's and an answer's are not quite.
        """
        _ = self.pointer
        self._semaphore.reset()
        self._kind, self._passes = kind, max(1, passes)

    def end(self) -> None:
        """The step that began is computed: remember how many nodes it took."""
        if nodes := self.nodes:
            self._expected[self._kind] = max(1, round(nodes / self._passes))

    @property
    def nodes(self) -> int:
        """Nodes computed since `begin()`."""
        return int(self.pointer.value)

    @property
    def progress(self) -> float | None:
        """Passes over the layers since `begin()`; None before any step has ended that could be a measure.

        A first step of its kind is measured by the last one of another.
        """
        expected = self._expected.get(self._kind) or next(reversed(self._expected.values()), None)
        return None if expected is None else min(self.nodes / expected, float(self._passes))

    def _free(self, pointer: Any) -> None:
        null = self._llama.ffi.NULL
        self._llama.lib.llama_set_abort_callback(self._context, null, null)
