"""How far a running step has come, told by llama.cpp itself and without a line of Python in between."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from shardload.llama.handle import Handle
from shardload_native.semaphore import Semaphore

if TYPE_CHECKING:
    from shardload_native.library import Llama

# No graph has so many times the nodes of another one of the same context.
SEVERAL = 1.5


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
        self._passes: int | None = None
        # Nodes of one pass over the layers, by kind of step.
        self._expected: dict[Hashable, float] = {}
        callback = llama.ffi.cast("ggml_abort_callback", self._semaphore.post_address)
        data = llama.ffi.cast("void *", self._semaphore.address)
        llama.lib.llama_set_abort_callback(context_pointer, callback, data)
        self._handle = self._semaphore

    def begin(self, kind: Hashable = None, passes: int | None = None) -> None:
        """Count from zero: a step of that kind comes, which goes over all layers so many times.

        The graphs of one kind are alike, a prompt's and an answer's are not quite. Where it is not told how
        often the step goes over the layers, that is guessed from other steps.
        """
        _ = self.pointer
        self._semaphore.reset()
        self._kind, self._passes = kind, passes

    def end(self) -> None:
        """The step that began is computed: remember how many nodes it took. Not for one that failed."""
        if nodes := self.nodes:
            fewest = min(self._expected.values(), default=nodes)
            self._expected[self._kind] = nodes / (self._passes or max(1, round(nodes / fewest)))

    @property
    def nodes(self) -> int:
        """Nodes computed since `begin()`."""
        return int(self.pointer.value)

    @property
    def progress(self) -> float | None:
        """Passes over the layers since `begin()`; None before any step has ended that could be a measure.

        A first step of its kind is measured by those of others, and so is one whose measure must have been
        of several passes.
        """
        fewest = min(self._expected.values(), default=None)
        if fewest is None:
            return None
        expected = self._expected.get(self._kind, fewest)
        passes = self.nodes / (expected if expected < SEVERAL * fewest else fewest)
        return passes if self._passes is None else min(passes, float(self._passes))

    def _free(self, pointer: Any) -> None:
        null = self._llama.ffi.NULL
        self._llama.lib.llama_set_abort_callback(self._context, null, null)
