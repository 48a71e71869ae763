"""What takes time: opening, closing, moving pages and measuring. Each ends with one synchronous change of the
ledger."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from shardload.errors import LoadFailed, ShardloadError, format_bytes
from shardload.library.actions import Actions, Leave, Resize
from shardload.library.holdings import Instance, Waiter, Weights
from shardload.library.keeping import Settled
from shardload.library.ledger import Ledger
from shardload.library.opener import Opener, Residency, WeightsHandle

logger = logging.getLogger("shardload.library")


class Start(Protocol):
    """Runs an effect beside everything else."""

    def __call__(self, effect: Callable[..., Coroutine[Any, Any, None]], /, *arguments: object) -> None: ...


class Listener(Protocol):
    """Who is told, on the event loop, when an effect has come about."""

    def opened(self, instance: Instance) -> None: ...
    def open_failed(self, instance: Instance, waiters: tuple[Waiter, ...], reason: str) -> None: ...
    def progressed(self, instance: Instance, fraction: float) -> None: ...
    def turn(self) -> None: ...


class Effects:
    """Runs the opener for a ledger: what was begun is brought to its end, cancelled or not.

    A loop that ends cancels every task; then an open counts as failed, and a close goes on.
    """

    def __init__(
        self, ledger: Ledger, opener: Opener, clock: Callable[[], float], listener: Listener, start: Start
    ) -> None:
        self._ledger, self._opener, self._clock = ledger, opener, clock
        self._listener, self._start = listener, start

    def begin(self, actions: Actions) -> None:
        """Begin everything that a turn decided."""
        for weights in actions.seconds:
            if weights.handle is not None:
                self._opener.allow_second_layout(weights.handle, weights.second_allowed)
        for instance in actions.opens:
            self._start(self.open, instance)
        for weights in actions.bring_backs:
            self._bring_back(weights)
        for leave in actions.leaves:
            self._start(self._page_out, leave)
        for resize in actions.resizes:
            self._start(self._resize, resize)
        for instance in actions.parks:
            self._start(self.park, instance, instance.uses)
        for instance in actions.closes:
            self._start(self.close, instance, "evicted")

    def carry_out(self, settled: Settled) -> None:
        """Begin everything that was settled."""
        for instance, reason in settled.closes:
            self._start(self.close, instance, reason)
        for weights in settled.weights:
            self._start(self.close_weights, weights)
        for instance in settled.parks:
            self._start(self.park, instance, instance.uses)

    async def open(self, instance: Instance) -> None:
        """Open an instance that memory was promised to, and its weights unless they are open."""
        started = self._clock()
        weights = instance.weights
        assert weights is not None, "begin_open gave it weights"
        try:
            handle = await self._opener.open_instance(
                await self._open_weights(weights, instance), instance.entry, instance.kind
            )
        except (Exception, CancelledError) as error:
            self._fail(instance, error)
            return
        now = self._clock()
        self._ledger.finish_open(instance, handle, now, now - started)
        logger.info(
            "opened %s (%s): %s mapped, %s private, %.0f ms",
            instance.entry.name,
            instance.kind,
            format_bytes(weights.size_bytes),
            format_bytes(weights.private_bytes + instance.private_bytes),
            instance.open_seconds * 1000,
        )
        self._listener.opened(instance)

    async def close(self, instance: Instance, reason: str) -> None:
        """Close an instance that was taken out of use."""
        started = self._clock()
        freed_bytes = instance.private_bytes
        if instance.handle is not None:
            try:
                await self._opener.close_instance(instance.handle)
            except (Exception, CancelledError):
                logger.exception("closing the context of %s failed", instance.entry.name)
        name, closed = instance.entry.name, instance.closed
        self._ledger.finish_close(instance)
        closed.set()
        milliseconds = (self._clock() - started) * 1000
        logger.info("closed %s (%s): %s, %.0f ms", name, reason, format_bytes(freed_bytes), milliseconds)
        self._listener.turn()

    async def close_weights(self, weights: Weights) -> None:
        """Close weights that were taken out of use and have no instances."""
        if weights.handle is not None:
            try:
                await self._opener.close_weights(weights.handle, drop_pages=weights.drop_pages)
            except (Exception, CancelledError):
                logger.exception("closing the weights of %s failed", weights.name)
        self._ledger.finish_close_weights(weights)
        self._listener.turn()

    async def measure(self) -> None:
        """Measure how much of all open weights is in memory."""
        targets = [
            (weights, weights.handle, weights.uses)
            for weights in self._ledger.by_heat()
            if weights.handle is not None
        ]
        found: list[Residency | None]
        try:
            found = await self._opener.measure([handle for _, handle, _ in targets])
        except (Exception, CancelledError):
            logger.exception("measuring what is in memory failed")
            found = [None] * len(targets)
        now = self._clock()
        for (weights, _, uses), residency in zip(targets, found, strict=True):
            self._ledger.note_measured(weights, uses, residency, now)

    async def _open_weights(self, weights: Weights, instance: Instance) -> WeightsHandle:
        if weights.claimed:
            await weights.opened.wait()
        else:
            weights.claimed = True
            started = self._clock()
            try:
                handle = await self._opener.open_weights(
                    instance.entry,
                    lambda fraction: self._listener.progressed(instance, fraction),
                    resident_limit_bytes=weights.limit_bytes,
                )
            except (Exception, CancelledError) as error:
                self._ledger.fail_weights(weights, error)
                raise
            # Prompts use the second layout as soon as a turn finds room for it.
            self._opener.allow_second_layout(handle, False)
            now = self._clock()
            self._ledger.finish_open_weights(weights, handle, now, now - started)
            if weights.limit_bytes is None:
                self._bring_back(weights)
        if weights.error is not None:
            raise weights.error
        assert weights.handle is not None, "weights are open or have an error"
        return weights.handle

    def _bring_back(self, weights: Weights) -> None:
        if weights.handle is not None:
            self._opener.bring_back(weights.handle)

    async def _page_out(self, leave: Leave) -> None:
        weights = leave.weights
        await self._moved(weights, leave.keep_bytes, self._send_away(weights, leave.keep_bytes))
        self._listener.turn()

    async def _resize(self, resize: Resize) -> None:
        weights, limit = resize.weights, resize.limit_bytes
        assert weights.handle is not None, "open weights have a handle"
        is_set = False

        async def change(handle: WeightsHandle) -> int:
            nonlocal is_set
            await self._opener.set_resident_limit(handle, limit)
            is_set = True
            if limit is None:
                return 1
            # What only prompts used is not in the limit.
            return max(await self._send_away(weights, limit), 1)

        share = "in memory as a whole" if limit is None else f"streaming with {format_bytes(limit)} in memory"
        logger.info("%s: %s", weights.name, share)
        kept_bytes = weights.size_bytes if limit is None else limit
        await self._moved(weights, kept_bytes, change(weights.handle))
        if is_set:
            weights.limit_bytes = limit
        else:
            weights.note_refused_resize()
        self._listener.turn()

    async def _send_away(self, weights: Weights, keep_bytes: int) -> int:
        assert weights.handle is not None, "open weights have a handle"
        hotter: list[WeightsHandle] = []
        for other in self._ledger.by_heat():
            if other is weights:
                break
            if other.handle is not None:
                hotter.append(other.handle)
        return await self._opener.page_out(weights.handle, keep_bytes, hotter)

    async def _moved(self, weights: Weights, keep_bytes: int, move: Coroutine[Any, Any, int]) -> None:
        """Bring a move of pages to its end, and see what it has brought."""
        freed_bytes = 0
        try:
            freed_bytes = await move
        except (Exception, CancelledError):
            logger.exception("moving the pages of %s failed", weights.name)
        await self.measure()
        weights.finish_move(keep_bytes, freed_bytes)

    async def park(self, instance: Instance, uses: int) -> None:
        """Park the KV state of an instance that was idle after so many uses, and give its memory back."""
        freed_bytes = 0
        assert instance.handle is not None, "open instances have a handle"
        try:
            freed_bytes = await self._opener.park_instance(instance.handle)
        except (Exception, CancelledError):
            logger.exception("parking the context of %s failed", instance.entry.name)
        instance.finish_park(uses, freed_bytes)
        self._listener.turn()

    def _fail(self, instance: Instance, error: BaseException) -> None:
        if not isinstance(error, ShardloadError | OSError | CancelledError):
            logger.error("opening %s failed unexpectedly", instance.entry.name, exc_info=error)
        reason = error.reason if isinstance(error, LoadFailed) else str(error) or repr(error)
        logger.warning("opening %s failed: %s", instance.entry.name, reason)
        waiters = self._ledger.dismiss_waiters(instance)
        instance.closed.set()
        self._ledger.finish_close(instance)
        self._listener.open_failed(instance, waiters, reason)
