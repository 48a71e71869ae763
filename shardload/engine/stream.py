"""A sequence's deltas on an asyncio event loop; the lane wakes each loop once a step."""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from shardload.engine.request import Delta
from shardload.engine.sequence import Sequence as EngineSequence
from shardload.engine.sequence import goes_on_below
from shardload.errors import ShardloadError

Event = Delta | ShardloadError

# Of what patient readers let lie so much is brought to them at once, at most.
PATIENT_EVENTS = 64


class Poster:
    """Brings the events of one loop's streams to it: one call_soon_threadsafe for all of a step.

    While nobody but patient readers has got something, it is left until an answer ends: a loop that wakes for
    every token takes a core from the computation each time.
    """

    __slots__ = ("_awaited", "_patience", "_pending", "_scheduled", "flush", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        """``limit`` is how many events a reader may be behind before its sequence is held back."""
        self.loop = loop
        # What lies here counts as unread, and must not keep one that was held back from going on.
        self._patience = min(PATIENT_EVENTS, goes_on_below(limit))
        self._pending: deque[tuple[Mailbox, Sequence[Event]]] = deque()
        self._scheduled = self._awaited = False
        # One bound method for all, so that the lane sees that its sinks share it.
        self.flush: Callable[[], None] = self._flush

    def post(self, mailbox: Mailbox, events: Sequence[Event]) -> None:
        """Lane thread: keep events for the next flush."""
        self._pending.append((mailbox, events))
        self._awaited = self._awaited or not mailbox.patient or any(map(_ends, events))

    def _flush(self) -> None:
        if self._scheduled or not self._pending:
            return
        # The lane posts one event at a time.
        if not self._awaited and len(self._pending) < self._patience:
            return
        self._awaited = False
        self._scheduled = True
        try:
            self.loop.call_soon_threadsafe(self.deliver)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._scheduled = False
            while self._pending:
                self._pending.popleft()[0].abandon()

    def deliver(self) -> None:
        """Loop: bring what there is to its readers."""
        # Cleared first: what the lane adds from here on is either seen below or scheduled anew.
        self._scheduled = False
        pending = self._pending
        while pending:
            mailbox, events = pending.popleft()
            mailbox.receive(events)


def _ends(event: Event) -> bool:
    return isinstance(event, ShardloadError) or event.finish is not None


class Mailbox:
    """The sink of one stream: written on the lane through the poster, read on the loop."""

    __slots__ = ("_poster", "events", "flush", "patient", "sequence", "waiter")

    def __init__(self, poster: Poster) -> None:
        self._poster = poster
        self.flush = poster.flush
        self.patient = False
        self.events: deque[Event] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.sequence: EngineSequence | None = None

    def __call__(self, events: Sequence[Event]) -> None:
        self._poster.post(self, events)

    def receive(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self) -> None:
        """Loop: nobody reads any more, and whoever waits learns it. What the lane has posted is dropped."""
        # In this order: what is posted from here on is brought at once, and what came before is taken here.
        self.patient = False
        self._poster.deliver()
        self.events.clear()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def abandon(self) -> None:
        if self.sequence is not None:
            self.sequence.cancel()


class DeltaStream:
    """The deltas of one sequence, on the event loop that asked for it; an error ends it by being raised.

    Leaving it early cancels the sequence: use it as an async context manager, or call ``aclose``.
    """

    __slots__ = ("_ended", "_mailbox", "sequence")

    def __init__(self, mailbox: Mailbox, sequence: EngineSequence) -> None:
        self.sequence = sequence
        self._mailbox = mailbox
        mailbox.sequence = sequence
        self._ended = False

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, also those that nobody has read."""
        return self.sequence.completion_tokens

    def be_patient(self) -> None:
        """From now on deltas may come many at once: nothing is done with them before the last one."""
        self._mailbox.patient = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        mailbox = self._mailbox
        while not mailbox.events or self._ended:
            if self._ended:
                raise StopAsyncIteration
            mailbox.waiter = asyncio.get_running_loop().create_future()
            try:
                await mailbox.waiter
            finally:
                mailbox.waiter = None
        event = mailbox.events.popleft()
        if isinstance(event, ShardloadError):
            self._ended = True
            raise event
        self.sequence.acknowledge(1)
        if event.finish is not None:
            self._ended = True
        return event

    async def aclose(self) -> None:
        """Cancel the sequence if it has not ended; idempotent, and awaits nothing."""
        self.close()

    def close(self) -> None:
        """``aclose`` for callers that cannot await."""
        if not self._ended:
            self._ended = True
            self.sequence.cancel()
        self._mailbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self.sequence.cancel()
            warnings.warn(
                "a DeltaStream was neither read nor closed", ResourceWarning, stacklevel=2, source=self
            )
