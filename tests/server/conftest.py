"""Fakes of what the application serves with, and a client that speaks ASGI itself."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from shardload_server.app import create_app
from shardload_server.auth import KeyRing
from shardload_server.runner import Server, bind, uvicorn_config
from shardload_server.stack import Stack
from starlette.applications import Starlette

from shardload.answer import AnswerDelta
from shardload.config import Config, ServerConfig
from shardload.engine.request import Finish, Timings, TokenLogprob, Usage
from shardload.errors import ModelNotFound
from shardload.library.entry import ModelEntry
from shardload.library.lease import OpenProgress
from shardload.requests import EmbeddingRequest


def entry(name: str) -> ModelEntry:
    path = Path(f"/models/{name}.gguf")
    return ModelEntry(
        name=name,
        path=path,
        paths=(path,),
        aliases=(f"{name}-alias",),
        base=None,
        ctx_tokens=512,
        slots=4,
        parameters={},
        system=None,
        chat_template="",
        pin=False,
        preload=False,
        keep_alive_seconds=None,
        kind="generate",
        capabilities=frozenset({"completion", "chat"}),
        architecture="llama",
        parameter_count=1000,
        size_bytes=4096,
        context_length=1024,
        file_key=((1, 2, 3, 4),),
        created=1700000000,
    )


def finish(prompt_tokens: int = 3, completion_tokens: int = 2, reason: Any = "stop") -> Finish:
    return Finish(
        reason=reason,
        stop_string=None,
        usage=Usage(prompt_tokens=prompt_tokens, cached_tokens=1, completion_tokens=completion_tokens),
        timings=Timings(queued_seconds=0.001, prompt_seconds=0.01, decode_seconds=0.02),
    )


@dataclass
class FakeStatus:
    name: str
    state: str = "open"
    resident_bytes: int | None = 2048
    size_bytes: int = 4096
    private_bytes: int = 512
    kv_bytes: int = 256
    leases: int = 0
    queued: int = 0
    pinned: bool = False
    expires_in_seconds: float | None = 12.0
    ctx_tokens: int = 512
    slots: int = 4
    last_used: float = 0.0
    opens: int = 2
    evictions: int = 1
    error: str | None = None


@dataclass
class FakeCatalog:
    known: dict[str, ModelEntry]

    def get(self, name: str) -> ModelEntry:
        for each in self.known.values():
            if name == each.name or name in each.aliases:
                return each
        raise ModelNotFound(name, self.known)

    def names(self) -> tuple[str, ...]:
        return tuple(self.known)

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(self.known.values())


@dataclass
class FakeManager:
    catalog: FakeCatalog
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failure: Exception | None = None
    pinned: set[str] = field(default_factory=set)

    def status(self) -> list[FakeStatus]:
        return [FakeStatus(name, pinned=name in self.pinned) for name in self.catalog.names()]

    async def load(
        self, name: str, *, pin: bool | None = None, keep_alive_seconds: float | None = None
    ) -> None:
        self._note("load", name, pin, keep_alive_seconds)
        if pin:
            self.pinned.add(name)

    async def unload(self, name: str) -> None:
        self._note("unload", name)

    def pin(self, name: str, pinned: bool) -> None:
        self._note("pin", name, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(name)

    async def swap(self, name: str, path: Path) -> None:
        self._note("swap", name, path)

    async def reconfigure(self, config: Config) -> None:
        self._note("reconfigure", config)

    def _note(self, verb: str, name: Any, *rest: Any) -> None:
        if isinstance(name, str):
            self.catalog.get(name)
        self.calls.append((verb, name, *rest))
        if self.failure is not None:
            raise self.failure


class FakeAnswer:
    """An answer that says what the test puts in; an exception put in is raised."""

    def __init__(self, model: str) -> None:
        self.id, self.created, self.model, self.rule = "chatcmpl-fake", 1700000001, model, "name"
        self.usage = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=0)
        self.closed = asyncio.Event()
        self.waiting = asyncio.Event()
        self._deltas: asyncio.Queue[AnswerDelta | Exception | None] = asyncio.Queue()

    def say(self, *texts: str, index: int = 0) -> FakeAnswer:
        for text in texts:
            self._deltas.put_nowait(AnswerDelta(index, text))
        return self

    def put(self, *items: AnswerDelta | Exception) -> FakeAnswer:
        for item in items:
            self._deltas.put_nowait(item)
        return self

    def end(self, *, index: int = 0, last: bool = True, reason: str = "stop") -> FakeAnswer:
        self._deltas.put_nowait(AnswerDelta(index, "", finish=finish(reason=reason)))
        if last:
            self._deltas.put_nowait(None)
        return self

    def __aiter__(self) -> FakeAnswer:
        return self

    async def __anext__(self) -> AnswerDelta:
        self.waiting.set()
        item = await self._deltas.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        self.usage = replace(self.usage, completion_tokens=self.usage.completion_tokens + bool(item.text))
        return item

    async def aclose(self) -> None:
        self.closed.set()


@dataclass(frozen=True)
class FakePlan:
    request: Any
    headers: Mapping[str, str]
    key: str | None
    rule: str = "name"

    @property
    def decision(self) -> Any:
        return SimpleNamespace(candidates=("the only one",))

    @property
    def model(self) -> str:
        name: str = self.request.model
        return name


@dataclass(frozen=True)
class FakeEmbeddings:
    vectors: Sequence[np.ndarray]
    prompt_tokens: int = 5
    model: str = "ada"
    rule: str = "name"


def _catalog() -> FakeCatalog:
    return FakeCatalog({name: entry(name) for name in ("ada", "grace", "org/model")})


class FakeService:
    """Starts the answers that a test lays out, in order; without any, says "Hello there" at once."""

    def __init__(self, catalog: FakeCatalog) -> None:
        self.catalog = catalog
        self.plans: list[FakePlan] = []
        self.answers: list[FakeAnswer] = []
        self.failure: BaseException | None = None
        self.starting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.opening: Callable[[Callable[[Any], None] | None], Any] | None = None

    def plan(self, request: Any, *, headers: Mapping[str, str], key: str | None) -> FakePlan:
        request.check()
        self.catalog.get(request.model)
        self.plans.append(FakePlan(request, headers, key))
        return self.plans[-1]

    async def start(self, plan: FakePlan, progress: Callable[[Any], None] | None = None) -> FakeAnswer:
        await self._open(progress)
        if self.answers:
            return self.answers.pop(0)
        return FakeAnswer(plan.request.model).say("Hello", " there").end()

    async def embed(self, plan: FakePlan, progress: Any = None) -> FakeEmbeddings:
        assert isinstance(plan.request, EmbeddingRequest)
        await self._open(progress)
        return FakeEmbeddings([np.array([0.6, 0.8], dtype=np.float32) for _ in plan.request.inputs])

    async def _open(self, progress: Callable[[Any], None] | None) -> None:
        self.starting.set()
        try:
            if self.opening is not None:
                await self.opening(progress)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.failure is not None:
            raise self.failure


@dataclass
class Served:
    """An application that runs, with its fakes and a client."""

    app: Starlette
    stack: Stack
    service: FakeService
    manager: FakeManager
    client: httpx.AsyncClient

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "ada", "messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    def exchange(self, path: str, **fields: Any) -> AsgiExchange:
        return AsgiExchange(self.app, path, {"model": "ada", **fields})

    def chat_exchange(self, **fields: Any) -> AsgiExchange:
        return self.exchange("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], **fields)


class AsgiExchange:
    """One request as a host would make it: the test sees each message and decides when the client leaves."""

    def __init__(self, app: Starlette, path: str, body: Any) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait(
            {"type": "http.request", "body": msgspec.json.encode(body), "more_body": False}
        )
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        self.reading = asyncio.Event()
        self.reading.set()
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self.sent.put_nowait(message)

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def start(self) -> dict[str, Any]:
        message = await self.sent.get()
        assert message["type"] == "http.response.start"
        return message

    async def frame(self) -> bytes:
        message = await self.sent.get()
        assert message["type"] == "http.response.body"
        return bytes(message["body"])

    async def rest(self) -> bytes:
        """All bodies until the response is complete; it must be."""
        parts = []
        while True:
            message = await self.sent.get()
            assert message["type"] == "http.response.body"
            parts.append(message["body"])
            if not message.get("more_body"):
                await self.task
                return b"".join(parts)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    """Runs an application over fakes: ``async with serve(max_body_bytes=10) as served``."""

    @asynccontextmanager
    async def run(**server: Any) -> AsyncIterator[Served]:
        catalog = _catalog()
        manager = FakeManager(catalog)
        services: list[FakeService] = []

        @asynccontextmanager
        async def fake_stack(config: Config, keys: KeyRing) -> AsyncIterator[Stack]:
            services.append(FakeService(catalog))
            yield Stack(config, catalog=catalog, manager=manager, service=services[0], keys=keys)  # type: ignore[arg-type]

        app = create_app(Config(server=ServerConfig(**server)), stack_factory=fake_stack)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
        ):
            yield Served(app, app.state.stack, services[0], manager, client)

    return run


@dataclass
class Hosted:
    """An application behind a real port, on a loop in a thread of its own."""

    url: str
    server: Server
    served: Served
    loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function, or wait for what it returns, on the server's loop."""

        async def run() -> Any:
            result = function()
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)


@pytest.fixture
def host() -> Iterator[Callable[..., Hosted]]:
    """Puts an application over fakes behind a real port: ``host(api_keys=("k",))``."""
    with ExitStack() as stack:
        yield lambda **server: stack.enter_context(_hosted(**server))


@contextmanager
def _hosted(**settings: Any) -> Iterator[Hosted]:
    config = ServerConfig(port=0, **settings)
    catalog, services = _catalog(), []
    manager = FakeManager(catalog)

    @asynccontextmanager
    async def fake_stack(config: Config, keys: KeyRing) -> AsyncIterator[Stack]:
        services.append(FakeService(catalog))
        yield Stack(config, catalog=catalog, manager=manager, service=services[0], keys=keys)  # type: ignore[arg-type]

    app = create_app(Config(server=config), stack_factory=fake_stack)
    ready: Future[asyncio.AbstractEventLoop] = Future()
    bound = bind(config)
    server = Server(
        uvicorn_config(app, config), app, started=lambda: ready.set_result(asyncio.get_running_loop())
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        loop = ready.result(30)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        served = Served(app, app.state.stack, services[0], manager, httpx.AsyncClient())
        yield Hosted(url, server, served, loop)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        bound.close()


@pytest.fixture
def answer() -> type[FakeAnswer]:
    return FakeAnswer


@pytest.fixture
def progress() -> Callable[[str, float], OpenProgress]:
    return lambda name, fraction: OpenProgress(name, "opening", fraction)


@pytest.fixture
def logprob() -> Callable[[str, float], TokenLogprob]:
    def make(text: str, value: float) -> TokenLogprob:
        raw = text.encode()
        return TokenLogprob(
            token=7, text=text, raw=raw, logprob=value, top=((7, raw, value), (8, b"\xff", float("-inf")))
        )

    return make


@pytest.fixture
def error_of() -> Callable[[httpx.Response], dict[str, Any]]:
    def read(response: httpx.Response) -> dict[str, Any]:
        assert response.headers["content-type"] == "application/json"
        error: dict[str, Any] = response.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        return error

    return read
