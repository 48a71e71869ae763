"""Opening with llama.cpp."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import psutil

from shardload import memory
from shardload.errors import LoadFailed
from shardload.library.entry import ModelEntry, Use, slots_for
from shardload.library.estimate import Prediction, predict
from shardload.library.opener import InstanceHandle, Progress, Residency, WeightsHandle
from shardload.shards.identity import FileIdentity
from shardload.work_thread import WorkThread

if TYPE_CHECKING:
    from shardload.config import EngineConfig
    from shardload.engine.lane import Lane
    from shardload.engine.parking import Parking, ParkingLot
    from shardload.library.llama_paging import LlamaPaging
    from shardload.llama import Context, Model

T = TypeVar("T")

PROGRESS_SECONDS = 0.05
"""Progress is told so often: the event loop that hears of it keeps the opener from its work meanwhile."""
SMALL_WEIGHTS_BYTES = 16 * 2**20
"""A step over fewer bytes is done before a second thread has joined in."""

logger = logging.getLogger("shardload.library")


class LlamaOpener:
    """Opens with llama.cpp, one at a time, on a thread beside the event loop; computes nothing there."""

    def __init__(
        self,
        lane: Lane,
        settings: EngineConfig,
        paging: LlamaPaging,
        parking: ParkingLot | None = None,
    ) -> None:
        """``settings`` give threads, batch size and GPU layers; all else is borrowed.

        Without ``parking`` conversations are computed again when their context was closed.
        """
        self._lane, self._settings, self._parking = lane, settings, parking
        self._paging = paging
        self._thread = WorkThread("shardload-opener")
        self._giving_up = threading.Event()

    def predict(self, entry: ModelEntry, kind: Use) -> Prediction:
        """What opening the entry will take."""
        batch_tokens = self._batch_tokens(entry, kind)
        prediction = predict(
            entry.memory,
            entry.ctx_tokens,
            slots_for(entry, kind),
            batch_tokens=batch_tokens,
            whole_batch=kind == "embed",
            kv_type=entry.kv_type,
        )
        return replace(prediction, read_places=self._paging.foreseen(entry.paths))

    def close(self) -> None:
        """End its thread; everything that it opened is closed."""
        self._thread.close()

    def give_up(self) -> None:
        """Abort the load that is running, and let later ones fail."""
        self._giving_up.set()

    async def open_weights(
        self, entry: ModelEntry, progress: Progress, *, resident_limit_bytes: int | None = None
    ) -> WeightsHandle:
        """Map the file; nothing of the weights is read."""
        report = _Reporter(asyncio.get_running_loop(), progress, self._giving_up)
        return await self._in_thread(lambda: self._open_weights(entry, report, resident_limit_bytes))

    async def open_instance(self, weights: WeightsHandle, entry: ModelEntry, kind: Use) -> InstanceHandle:
        """Reserve the KV cache and attach the context to the lane."""
        return await self._in_thread(lambda: self._open_instance(weights.model, entry, kind))

    async def close_instance(self, instance: InstanceHandle) -> None:
        """Detach from the lane, wait until no step touches the context, and free it."""
        await _outcome(self._lane.detach(instance.engine))
        await self._in_thread(instance.runner.close)

    async def close_weights(self, weights: WeightsHandle, *, drop_pages: bool) -> None:
        """Unmap the file. Pages are dropped before, while they are mapped, and from the page cache after."""
        await self._in_thread(lambda: self._close_weights(weights.model, drop_pages=drop_pages))

    async def park_instance(self, instance: InstanceHandle) -> int:
        """Save what its slots hold and give the memory of its KV cache back.

        All of the cache is free then, also what was promised to it and never used.
        """
        return instance.kv_bytes if await _outcome(instance.engine.park()) else 0

    async def measure(self, weights: Sequence[WeightsHandle]) -> list[Residency | None]:
        """Ask the kernel for each mapping."""
        return await self._in_thread(lambda: self._paging.measure([handle.model for handle in weights]))

    async def page_out(
        self, weights: WeightsHandle, keep_bytes: int, sparing: Sequence[WeightsHandle]
    ) -> int:
        """Send pages out, of each layer alike."""
        others = [handle.model for handle in sparing]
        return await self._in_thread(lambda: self._paging.page_out(weights.model, keep_bytes, others))

    def bring_back(self, weights: WeightsHandle) -> None:
        """Begin to read what is missing."""
        self._paging.bring_back(weights.model)

    def allow_second_layout(self, weights: WeightsHandle, allowed: bool) -> None:
        """Let steps of many tokens choose between both orders, or not."""
        self._paging.allow_second(weights.model, allowed)

    async def set_resident_limit(self, weights: WeightsHandle, limit_bytes: int | None) -> None:
        """Stream with another share, or no more."""
        await self._in_thread(lambda: self._paging.set_limit(weights.model, limit_bytes))

    async def cached_bytes(self, files: Sequence[Sequence[Path]]) -> list[int | None]:
        """Ask the kernel for each file; on a thread where no open has to wait for it."""
        return await anyio.to_thread.run_sync(lambda: [cached_bytes(paths) for paths in files])

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await _outcome(self._thread.submit(work))

    def _parking_of(self, model: Model, kind: Use) -> Parking | None:
        """Where a context's conversations wait: those of the same bytes, not of the same name."""
        if self._parking is None or kind != "generate":
            return None
        try:
            files = [path.stat() for path in model.paths]
        except OSError:
            return None  # deleted meanwhile: nobody will come back to it
        # A file that was replaced has other bytes than the weights that are open, and states of its own.
        if not model.is_of(files):
            return None
        return self._parking.of(" ".join(FileIdentity.of(file).lasting for file in files))

    def _threads_for(self, entry: ModelEntry) -> int:
        if self._settings.threads:
            return self._settings.threads
        return 1 if entry.size_bytes < SMALL_WEIGHTS_BYTES else available_cores()

    def _batch_tokens(self, entry: ModelEntry, kind: Use) -> int:
        # A text is pooled in one batch: what the context holds must fit it.
        return entry.ctx_tokens if kind == "embed" else min(self._settings.batch, entry.ctx_tokens)

    def _open_weights(
        self, entry: ModelEntry, report: _Reporter, resident_limit_bytes: int | None
    ) -> WeightsHandle:
        if self._giving_up.is_set():
            raise LoadFailed(str(entry.path), "the process is ending")
        memory.trim_heap()
        before = memory.process_memory().anonymous_bytes
        model = self._open_model(entry, report, resident_limit_bytes)
        try:
            memory.trim_heap()
            grown_bytes = memory.process_memory().anonymous_bytes - before
            opened = self._paging.opened(entry.name, model, grown_bytes, resident_limit_bytes)
        except BaseException:
            model.close()
            raise
        return WeightsHandle(vocab=model.vocab, read_facts=opened.facts, model=model)

    def _open_model(self, entry: ModelEntry, report: _Reporter, limit_bytes: int | None) -> Model:
        from shardload.llama import Model, ModelParams

        params = ModelParams(
            gpu_layers=self._settings.gpu_layers,
            use_extra_bufts=True,
            shelf=self._paging.shelf(entry.paths),
            # Where memory is short nothing is packed in memory: what is not stored is read from the file.
            pack_at_once=limit_bytes is None,
        )
        try:
            return Model.open(entry.paths, params, report)
        except LoadFailed as error:
            if limit_bytes is None or self._giving_up.is_set():
                raise
            # Room is reserved for all that might be packed: more than the machine has is refused.
            logger.info("%s is opened without packed weights: %s", entry.path, error)
            return Model.open(entry.paths, replace(params, use_extra_bufts=False), report)

    def _close_weights(self, model: Model, *, drop_pages: bool) -> None:
        paths = model.paths
        try:
            if drop_pages:
                self._page_out_all(model)
        finally:
            try:
                self._paging.closing(model)
            finally:
                model.close()
        memory.trim_heap()
        if drop_pages:
            for path in paths:
                with contextlib.suppress(OSError):  # deleted meanwhile, and its pages with it
                    memory.drop_file_cache(path)

    def _page_out_all(self, model: Model) -> None:
        """Send pages away; what keeps that from being done is no reason to keep the model open."""
        try:
            self._paging.page_out_all(model)
        except FileNotFoundError:
            pass  # deleted while it was open
        except OSError as error:
            logger.warning("the pages of %s stay in memory: %s", model.path, error)

    def _open_instance(self, model: Model, entry: ModelEntry, kind: Use) -> InstanceHandle:
        from shardload.llama import Context, ContextParams

        threads = self._threads_for(entry)
        context: Context = Context(
            model,
            ContextParams(
                ctx_tokens=entry.ctx_tokens,
                slots=slots_for(entry, kind),
                batch_tokens=self._batch_tokens(entry, kind),
                threads=threads,
                threads_batch=threads,
                embeddings=kind == "embed",
                pooling="mean" if kind == "embed" and model.pooling is None else None,
                kv_type=entry.kv_type,
            ),
        )
        try:
            engine = self._lane.attach(context, name=entry.name, parking=self._parking_of(model, kind))
        except BaseException:
            context.close()
            raise
        kv_bytes = int(context.kv_bytes)
        return InstanceHandle(
            engine=engine,
            ctx_tokens=context.ctx_tokens,
            kv_bytes=kv_bytes,
            private_bytes=kv_bytes + int(context.compute_bytes),
            runner=context,
        )


def cached_bytes(paths: Iterable[Path]) -> int | None:
    """Bytes of a file in parts that are in memory: 0 for parts that are gone, None where nobody tells."""
    total = 0
    for path in paths:
        try:
            count = memory.file_resident_bytes(path)
        except OSError:
            continue
        if count is None:
            return None
        total += count
    return total


def available_cores() -> int:
    """Physical cores that this process may use; computing on both threads of a core gains nothing."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


async def _outcome(work: Future[T]) -> T:
    """The result of what goes on elsewhere, however often who waits for it is cancelled."""
    done = asyncio.wrap_future(work)
    with anyio.CancelScope(shield=True):
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((done,))
    return done.result()


class _Reporter:
    """Carries progress from the opener's thread to the event loop, now and then and at the end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, progress: Progress, giving_up: threading.Event
    ) -> None:
        self._loop, self._progress, self._giving_up = loop, progress, giving_up
        self._reported_at = time.monotonic()

    def __call__(self, done: float) -> bool:
        if self._giving_up.is_set():
            return False
        now = time.monotonic()
        if done >= 1.0 or now - self._reported_at >= PROGRESS_SECONDS:
            self._reported_at = now
            self._loop.call_soon_threadsafe(self._progress, done)
        return True
