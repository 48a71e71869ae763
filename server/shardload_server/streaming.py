"""Server-sent events: one writer to a client, progress before the answer, signs of life in silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import Message, Send

from shardload_server.exchange import ClientLeft

if TYPE_CHECKING:
    from shardload.library.lease import OpenProgress

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
KEEP_ALIVE_FRAME = b": keep-alive\n\n"
READER_SECONDS = 60.0
"""How long a client may leave the next piece unread: its answer holds a place in its model meanwhile."""


class EventStream:
    """A response of events; its headers go out with the first of them, so that failing before is a status.

    The heartbeat is a task beside the answer: after a short grace it reports the progress of an open,
    and it breaks silences of ``silence_seconds``. Writers take turns by a lock. A client that reads nothing
    for READER_SECONDS counts as gone: whatever is written to it raises ClientLeft from then on.
    """

    def __init__(
        self,
        send: Send,
        *,
        headers: Mapping[str, str],
        grace_seconds: float,
        silence_seconds: float,
        progress_comments: bool = True,
    ) -> None:
        self.started = False
        self._send, self._headers = send, headers
        self._grace_seconds, self._silence_seconds = grace_seconds, silence_seconds
        self._progress_comments = progress_comments
        self._lock = asyncio.Lock()
        self._gone = False
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._news: OpenProgress | None = None
        self._woken = asyncio.Event()
        self._heartbeat: asyncio.Task[None] | None = None

    def start_heartbeat(self) -> None:
        """Begin to report progress and to break silences."""
        self._heartbeat = asyncio.create_task(self._beat())

    def report(self, progress: OpenProgress) -> None:
        """Have the progress of an open told to the client; only the newest counts."""
        if self._progress_comments and not self._is_repeated(progress):
            self._news = progress
            self._woken.set()

    def settled(self, headers: Mapping[str, str]) -> None:
        """Note that the answer begins: the open is no news any more, and the headers are known."""
        self._news = None
        self._headers = headers

    async def write(self, frames: bytes) -> None:
        """Send whole frames; waits while the client reads more slowly than we write."""
        async with self._lock:
            await self._write(frames)

    async def end(self, frames: bytes = b"") -> None:
        """Send the last frames and finish the response."""
        async with self._lock:
            self.stop_heartbeat()
            if not self.started:
                await self._start()
            await self._deliver({"type": "http.response.body", "body": frames, "more_body": False})

    def stop_heartbeat(self) -> None:
        """End the heartbeat; harmless when it never began."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    async def _write(self, frames: bytes) -> None:
        if not self.started:
            await self._start()
        await self._deliver({"type": "http.response.body", "body": frames, "more_body": True})
        self._written_at = self._loop.time()

    async def _start(self) -> None:
        self.started = True
        extra = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await self._deliver({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *extra]})

    async def _deliver(self, message: Message) -> None:
        if self._gone:
            raise ClientLeft
        try:
            async with asyncio.timeout(READER_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            self._gone = True  # a piece is missing: nothing may follow
            raise ClientLeft from error

    async def _beat(self) -> None:
        # A write that fails means that the connection is gone, which the answer learns by itself.
        with contextlib.suppress(OSError, ClientLeft):
            await self._beat_on()

    async def _beat_on(self) -> None:
        await asyncio.sleep(self._grace_seconds)
        while True:
            quiet_seconds = self._loop.time() - self._written_at
            try:
                async with asyncio.timeout(max(0.0, self._silence_seconds - quiet_seconds)):
                    await self._woken.wait()
            except TimeoutError:
                if self._loop.time() - self._written_at >= self._silence_seconds:
                    await self.write(KEEP_ALIVE_FRAME)
                continue
            self._woken.clear()
            if (news := self._news) is not None:
                await self.write(progress_frame(news))

    def _is_repeated(self, progress: OpenProgress) -> bool:
        last = self._news
        return (
            last is not None
            and (last.name, last.stage) == (progress.name, progress.stage)
            and 0 <= progress.fraction - last.fraction < 0.01
            and progress.fraction < 1
        )


def progress_frame(progress: OpenProgress) -> bytes:
    """A comment that tells how far an open is; clients of events skip it."""
    name = " ".join(progress.name.split())
    if progress.stage == "waiting":
        return f": waiting for room for {name}\n\n".encode()
    return f": loading {name} {progress.fraction:.2f}\n\n".encode()
