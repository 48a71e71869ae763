"""What takes time: opening, closing and measuring. Each ends with one synchronous change of the ledger."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable
from typing import Protocol

from shardload.errors import LoadFailed, ShardloadError, format_bytes
from shardload.library.ledger import Instance, Ledger, Waiter, Weights
from shardload.library.opener import Opener, WeightsHandle

logger = logging.getLogger("shardload.library")


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
        self, ledger: Ledger, opener: Opener, clock: Callable[[], float], listener: Listener
    ) -> None:
        self._ledger, self._opener, self._clock, self._listener = ledger, opener, clock, listener

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
        """Close an instance that was taken out of use, and its weights if they were as well."""
        started = self._clock()
        weights, freed_bytes = instance.weights, instance.private_bytes
        if instance.handle is not None:
            try:
                await self._opener.close_instance(instance.handle)
            except (Exception, CancelledError):
                logger.exception("closing the context of %s failed", instance.entry.name)
        name, closed = instance.entry.name, instance.closed
        self._ledger.finish_close(instance)
        if weights is not None and weights.state == "closing" and not weights.instances:
            freed_bytes += weights.counted_bytes
            await self._close_weights(weights)
        closed.set()
        milliseconds = (self._clock() - started) * 1000
        logger.info("closed %s (%s): %s, %.0f ms", name, reason, format_bytes(freed_bytes), milliseconds)
        self._listener.turn()

    async def close_weights(self, weights: Weights) -> None:
        """Close weights that were taken out of use and have no instances."""
        await self._close_weights(weights)
        self._listener.turn()

    async def measure(self) -> None:
        """Measure how much of all open weights is in memory."""
        targets = [
            (weights, weights.handle, weights.uses)
            for weights in self._ledger.weights.values()
            if weights.state == "open" and weights.handle is not None
        ]
        try:
            found = await self._opener.measure([handle for _, handle, _ in targets])
        except Exception:
            logger.exception("measuring what is in memory failed")
            found = [None] * len(targets)
        now = self._clock()
        for (weights, _, uses), residency in zip(targets, found, strict=True):
            weights.measured = residency
            if weights.uses == uses:
                weights.measured_at = now

    async def _open_weights(self, weights: Weights, instance: Instance) -> WeightsHandle:
        if weights.claimed:
            await weights.opened.wait()
        else:
            weights.claimed = True
            try:
                weights.handle = await self._opener.open_weights(
                    instance.entry, lambda fraction: self._listener.progressed(instance, fraction)
                )
            except (Exception, CancelledError) as error:
                self._ledger.fail_weights(weights, error)
                raise
            weights.private_bytes = weights.handle.facts.private_bytes
            weights.state = "open"
            weights.opened.set()
        if weights.error is not None:
            raise weights.error
        assert weights.handle is not None, "weights are open or have an error"
        return weights.handle

    async def _close_weights(self, weights: Weights) -> None:
        if weights.handle is not None:
            self._ledger.note_totals(weights)
            try:
                await self._opener.close_weights(weights.handle, drop_pages=weights.drop_pages)
            except (Exception, CancelledError):
                logger.exception("closing weights failed")
        self._ledger.finish_weights(weights)

    def _fail(self, instance: Instance, error: BaseException) -> None:
        if not isinstance(error, ShardloadError | OSError | CancelledError):
            logger.error("opening %s failed unexpectedly", instance.entry.name, exc_info=error)
        reason = error.reason if isinstance(error, LoadFailed) else str(error) or repr(error)
        logger.warning("opening %s failed: %s", instance.entry.name, reason)
        waiters = self._ledger.dismiss_waiters(instance)
        instance.closed.set()
        self._ledger.finish_close(instance)
        self._listener.open_failed(instance, waiters, reason)
