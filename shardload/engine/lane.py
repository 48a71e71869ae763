"""The compute thread: the one place where any model computes.

OpenMP keeps a team of workers for each thread that computes, and two teams on the same cores collapse; so all
models take turns on this thread. Two that only generate share a turn: each computes on its half of the cores,
the second one on a thread that lives as long as such turns follow each other, since its team would slow down
the first one's. What comes from other threads arrives through its inbox, what it produces
leaves through sinks at the end of each step. While there is nothing to do it sleeps on the inbox.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Self

from shardload.engine.engine import Engine
from shardload.engine.parking import Parking
from shardload.engine.roster import Outbox
from shardload.engine.runner import Runner
from shardload.engine.saving import Saving
from shardload.engine.scheduler import next_turn
from shardload.engine.stream import Poster
from shardload.engine.workload import Workload
from shardload.errors import HandleClosed, NativeError, ShardloadError, ShuttingDown
from shardload.work_thread import WorkThread

__all__ = ["Engine", "Lane"]

logger = logging.getLogger("shardload.engine")


class Lane:
    """Owner of the compute thread and of all that is decoded on it.

    ``output_limit_tokens`` bounds how far a sequence runs ahead of its reader.
    """

    def __init__(self, *, output_limit_tokens: int = 256, clock: Callable[[], float] = perf_counter) -> None:
        self._output_limit, self._clock = output_limit_tokens, clock
        self._inbox: SimpleQueue[tuple[Callable[..., None], tuple[object, ...]]] = SimpleQueue()
        self._workloads: list[Workload] = []
        self._savings: deque[Saving] = deque()
        self._outbox: Outbox = []
        self._posters: dict[asyncio.AbstractEventLoop, Poster] = {}
        self._virtual_now = 0.0
        self._step = 0
        self.is_busy = False
        """Whether steps follow each other now; to be read on any thread."""
        self._second: WorkThread | None = None
        self._said_no_thread = False
        self._stopping = False
        self._ended = False
        # Nothing is posted that nobody will read; after the end, whoever holds this is the lane.
        self._end_lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="shardload-lane", daemon=True)

    # -- any thread

    def start(self) -> None:
        """Start the thread; once."""
        if self._ended:
            raise HandleClosed("the lane")
        self._thread.start()

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Fail what is left with ShuttingDown and end the thread after its current step. Idempotent.

        A step that takes longer than the timeout is left behind on its daemon thread, and logged.
        """
        with self._end_lock:
            if not self._ended:
                self._inbox.put((self._stop, ()))
        if not self._thread.ident:
            self._end()
            return
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.error("the lane did not end within %.1f seconds", timeout_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(
        self, runner: Runner, *, weight: float = 1.0, name: str, parking: Parking | None = None
    ) -> Engine:
        """Let a runner take turns; a weight of 2 gives it twice the compute time under load.

        The lane borrows the runner until its ``detach`` is done. Conversations that lose their place wait in
        ``parking``, all of them when the lane is closed. Raises HandleClosed after ``close``.
        """
        if weight <= 0:
            raise ValueError(f"the weight of {name!r} must be positive, not {weight}")
        workload = Workload(
            name,
            runner,
            self._outbox,
            weight=weight,
            output_limit_tokens=self._output_limit,
            parking=parking,
            wake=self._wake,
        )
        engine = Engine(self, workload)
        if self._ended:
            raise HandleClosed("the lane")
        self.post(self._attach, workload)
        return engine

    def detach(self, engine: Engine) -> Future[None]:
        """Take a runner away: its sequences fail with ModelUnavailable, and then nothing here touches it.

        With a parking, what its slots hold is saved before that.
        """
        done: Future[None] = Future()
        engine.detached = True
        self.post(self._detach, engine, done)
        return done

    def post(self, action: Callable[..., None], *arguments: object) -> None:
        """Have an action done on the lane before its next step; after the end it is done here and now."""
        with self._end_lock:
            if not self._ended:
                self._inbox.put((action, arguments))
                return
            self._do(action, arguments)
            self._fail_everything()
            self._finish_savings()

    def poster(self, loop: asyncio.AbstractEventLoop) -> Poster:
        """The poster of a loop; called on that loop's thread."""
        poster = self._posters.get(loop)
        if poster is None:
            for other in [other for other in list(self._posters) if other.is_closed()]:
                self._posters.pop(other, None)
            poster = self._posters[loop] = Poster(loop, self._output_limit)
        return poster

    # -- lane thread

    def turn(self) -> bool:
        """Read the inbox, save one slot and do one step; whether there was something to do."""
        inbox = self._inbox
        while not inbox.empty():
            self._do(*inbox.get())
        saving = self._save_one()
        ready = [workload for workload in self._workloads if self._prepare(workload)]
        self.is_busy = bool(ready)
        if ready and not self._stopping:
            self._compute(ready)
        self._deliver()
        return bool(ready) or saving

    def save(self, workload: Workload, done: Future[int], *, give_back: bool) -> None:
        """Save a workload's idle slots in the next turns; for ``Engine.park``."""
        self._savings.append(Saving(workload, done, give_back))

    def _save_one(self) -> bool:
        """One slot of whoever asked first: whoever comes after him is done with when he is."""
        if not self._savings:
            return False
        if not self._savings[0].step():
            self._savings.popleft()
        return True

    def _finish_savings(self) -> None:
        while self._save_one():
            pass

    def _wake(self) -> None:
        """Have the lane look at its workloads, on any thread; after the end there is nothing to see."""
        if not self._ended:
            self._inbox.put((lambda: None, ()))

    def _run(self) -> None:
        logger.debug("the lane runs on thread %d", threading.get_native_id())
        try:
            while not self._stopping:
                if not self._guarded_turn() and not self._stopping:
                    self._do(*self._inbox.get())
        finally:
            self._end()

    def _guarded_turn(self) -> bool:
        try:
            return self.turn()
        except Exception as error:
            for workload in self._workloads:
                self._contain(workload, error)
            # The next turn tells those whose sequences failed, and goes on with what was begun.
            return True

    def _prepare(self, workload: Workload) -> bool:
        try:
            ready = workload.prepare()
        except Exception as error:
            self._contain(workload, error)
            ready = False
        if ready and not workload.was_ready:
            # Time that an engine did not ask for is not saved up for later.
            workload.virtual_seconds = max(workload.virtual_seconds, self._virtual_now)
        workload.was_ready = ready
        return ready

    def _compute(self, ready: list[Workload]) -> None:
        turn = next_turn(ready)
        self._virtual_now = turn[0].virtual_seconds
        self._step += 1
        beside = self._step_beside(turn[1]) if len(turn) > 1 else None
        if beside is None:
            del turn[1:]
            self._end_second_thread()
            outcomes = [self._timed_step(turn[0], 1)]
        else:
            outcomes = [self._timed_step(turn[0], 2), beside.result()]
        for workload, (seconds, error) in zip(turn, outcomes, strict=True):
            workload.stats.compute_seconds_total += seconds / len(turn)
            workload.virtual_seconds += seconds / len(turn) / workload.weight
            if error is not None:
                self._contain(workload, error)

    def _step_beside(self, workload: Workload) -> Future[tuple[float, Exception | None]] | None:
        """Begin a step on the second thread; None where the system has no thread for it now."""
        try:
            self._second = self._second or WorkThread("shardload-lane-second")
        except RuntimeError as error:
            if not self._said_no_thread:
                self._said_no_thread = True
                logger.warning("models compute one after the other, not side by side: %s", error)
            return None
        return self._second.submit(self._timed_step, workload, 2)

    def _timed_step(self, workload: Workload, parts: int) -> tuple[float, Exception | None]:
        crowded = any(other.is_running for other in self._workloads if other is not workload)
        began = self._clock()
        try:
            workload.divide_cores(parts)
            workload.step(self._step, crowded=crowded)
        except Exception as error:
            return self._clock() - began, error
        return self._clock() - began, None

    def _end_second_thread(self) -> None:
        if self._second is not None:
            self._second.close()
            self._second = None

    def _deliver(self) -> None:
        outbox = self._outbox
        if not outbox:
            return
        flushes: dict[Callable[[], None], None] = {}
        for sequence, event in outbox:
            if sequence.cancelled:
                continue
            try:
                sequence.sink((event,))
            except Exception:
                logger.exception("a sink failed, its sequence is cancelled")
                sequence.cancel()
            if sequence.flush is not None:
                flushes[sequence.flush] = None
        outbox.clear()
        for flush in flushes:
            try:
                flush()
            except Exception:
                logger.exception("events could not be delivered")

    def _contain(self, workload: Workload, error: Exception) -> None:
        """Whatever goes wrong ends the sequences of one engine, never the lane."""
        logger.error("%s: the engine failed", workload.name, exc_info=error)
        failed = NativeError(f"the engine of {workload.name!r} failed: {error!r}")
        try:
            workload.fail_all(failed)
        except Exception:
            logger.exception("%s: its sequences cannot be failed", workload.name)

    def _do(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            action(*arguments)
        except Exception:
            logger.exception("an action on the lane failed")

    def _attach(self, workload: Workload) -> None:
        workload.virtual_seconds = self._virtual_now
        self._workloads.append(workload)

    def _detach(self, engine: Engine, done: Future[None]) -> None:
        workload = engine._workload
        try:
            engine._detach()
            self._deliver()
        finally:
            if workload in self._workloads:
                self._workloads.remove(workload)
            saved: Future[int] = Future()
            saved.add_done_callback(lambda _: done.set_result(None))
            # One that was asked for before must be over, too.
            if workload.parking is not None or any(one.workload is workload for one in self._savings):
                self.save(workload, saved, give_back=False)
            else:
                saved.set_result(0)

    def _stop(self) -> None:
        self._stopping = True

    def _end(self) -> None:
        self._end_second_thread()
        with self._end_lock:
            self._ended = True
            while not self._inbox.empty():
                self._do(*self._inbox.get())
            self._fail_everything()
            for workload in self._workloads:
                if workload.parking is not None:
                    self.save(workload, Future(), give_back=False)
            self._finish_savings()

    def _fail_everything(self) -> None:
        error: ShardloadError = ShuttingDown()
        for workload in self._workloads:
            workload.fail_all(error)
        self._deliver()
