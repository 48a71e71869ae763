"""The service on an event loop of its own, for programs that have none."""

from __future__ import annotations

import _thread
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio
from anyio.from_thread import BlockingPortal

from shardload.answer import Answer, AnswerDelta
from shardload.assembly import paging_of, parking_of, relieved_by
from shardload.config import Config
from shardload.engine import Lane
from shardload.errors import HandleClosed
from shardload.library.catalog import Catalog
from shardload.requests import EmbeddingRequest, Request
from shardload.service import Embeddings, Service

if TYPE_CHECKING:
    from shardload.library.manager import Manager

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves: the parts belong to the event loop that assembled them."""

    catalog: Catalog
    manager: Manager
    service: Service


Assemble = Callable[[Config], AbstractAsyncContextManager[Parts]]


@asynccontextmanager
async def assembled(config: Config) -> AsyncIterator[Parts]:
    """Put the parts together over llama.cpp, and take them apart in order."""
    from shardload.library.llama_opener import LlamaOpener
    from shardload.library.manager import Manager

    catalog = Catalog.from_config(config)
    with (
        parking_of(config) as parking,
        Lane() as lane,
        paging_of(config, lambda: lane.is_busy) as paging,
        closing(LlamaOpener(lane, config.engine, paging, parking)) as opener,
    ):
        async with Manager.from_config(catalog, opener, config, lambda: parking.memory_bytes) as manager:
            with relieved_by(manager.relieve):
                yield Parts(catalog, manager, Service(catalog, manager, config.routes))


class Runtime:
    """An event loop on a daemon thread with the parts on it; any thread may call.

    Closed by ``close``, or at the end of the process. A thread of a pool would not do: the interpreter waits
    for those before anybody is told that it ends. In a forked child it is closed from the beginning.
    """

    def __init__(self, config: Config, assemble: Assemble = assembled) -> None:
        """Start the loop and wait for the parts; raises what assembling them raises."""
        self._answers: set[Answer] = set()
        ready: Future[tuple[BlockingPortal, Parts]] = Future()
        thread = threading.Thread(
            target=anyio.run,
            args=(_main, config, assemble, self._answers, ready),
            name="shardload-loop",
            daemon=True,
        )
        thread.start()
        try:
            self._portal, self.parts = ready.result()
        except Exception:
            thread.join()
            raise
        self._thread = thread
        self._close = weakref.finalize(self, _collected, self._portal, thread)

    @property
    def closed(self) -> bool:
        return not self._close.alive or not self._thread.is_alive()

    @overload
    def call(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T: ...
    @overload
    def call(self, work: Callable[..., T], *arguments: Any) -> T: ...
    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something on the loop and wait for it; raises HandleClosed after ``close``."""
        if self.closed:
            raise HandleClosed("the model")
        future = self._portal.start_task_soon(work, *arguments)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # whoever was interrupted while waiting wants it no more
            raise

    def start(self, request: Request) -> Answer:
        """Plan and start an answer; it is closed with the runtime at the latest."""
        return self.call(self._start, request)

    def next(self, answer: Answer) -> AnswerDelta:
        """The next delta of an answer that has not ended; raises HandleClosed where it was closed."""
        return self.call(self._next, answer)

    def rest(self, answer: Answer, receive: Callable[[AnswerDelta], None]) -> None:
        """Hand all deltas that are left to ``receive``, on the loop, and return after the last one.

        To cross threads for each of them costs more than what is done with it. Raises as `next` does.
        """
        self.call(self._rest, answer, receive)

    def end(self, answer: Answer) -> None:
        """Close an answer; idempotent, also after ``close``."""
        if not self.closed:
            self.call(self._end, answer)

    def abandon(self, answer: Answer) -> None:
        """Close an answer that nobody has any more, some time; for ``__del__``, which runs on any thread."""
        if not self.closed:
            _thread.start_new_thread(self._try_to_end, (answer,))

    def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Plan and compute embeddings."""
        return self.call(self._embed, request)

    def close(self) -> None:
        """End what runs, close every model and stop the loop; idempotent."""
        if self._close.detach() is not None:
            _stop(self._portal, self._thread)

    def __del__(self) -> None:
        finalizer = getattr(self, "_close", None)
        if finalizer is not None and finalizer.alive:
            warnings.warn("shardload models were never closed", ResourceWarning, source=self, stacklevel=1)

    async def _start(self, request: Request) -> Answer:
        service = self.parts.service
        answer = await service.start(service.plan(request))
        self._answers.add(answer)
        return answer

    async def _next(self, answer: Answer) -> AnswerDelta:
        try:
            return await anext(answer)
        except StopAsyncIteration:
            raise HandleClosed("the model") from None
        finally:
            if answer.closed:
                self._answers.discard(answer)

    async def _rest(self, answer: Answer, receive: Callable[[AnswerDelta], None]) -> None:
        answer.be_patient()
        finish = None
        while finish is None:
            delta = await self._next(answer)
            receive(delta)
            finish = delta.finish

    def _try_to_end(self, answer: Answer) -> None:
        with suppress(Exception):  # the runtime ends meanwhile, and its answers with it
            self.end(answer)

    async def _end(self, answer: Answer) -> None:
        self._answers.discard(answer)
        await answer.aclose()

    async def _embed(self, request: EmbeddingRequest) -> Embeddings:
        service = self.parts.service
        return await service.embed(service.plan(request))


async def _main(
    config: Config,
    assemble: Assemble,
    answers: set[Answer],
    ready: Future[tuple[BlockingPortal, Parts]],
) -> None:
    async with BlockingPortal() as portal:
        try:
            async with assemble(config) as parts:
                ready.set_result((portal, parts))
                await portal.sleep_until_stopped()
                for answer in tuple(answers):
                    await answer.aclose()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)


def _collected(portal: BlockingPortal, thread: threading.Thread) -> None:
    """The end of the process, or of a runtime that was never closed: that is noticed on whichever thread."""
    if threading.current_thread().daemon:
        # It may be one that the loop waits for: nothing is waited for here.
        _thread.start_new_thread(_stop, (portal, thread))
    else:
        _stop(portal, thread)


def _stop(portal: BlockingPortal, thread: threading.Thread) -> None:
    if thread.is_alive():  # in a forked child only the thread that forked is
        portal.start_task_soon(portal.stop)
        thread.join()
