"""Applications over fakes, in the test's own loop or behind a port, and a client that speaks ASGI itself."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from server_fakes import FakeAnswer, FakeManager, FakeService, catalog_of_three
from starlette.applications import Starlette

from shardload.config import Config, ServerConfig
from shardload.engine.request import TokenLogprob
from shardload.library.lease import OpenProgress
from shardload_server.app import create_app
from shardload_server.auth import KeyRing
from shardload_server.runner import Server, bind, uvicorn_config
from shardload_server.stack import Stack


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

    def cut_short(self) -> None:
        """Leave in the middle of the body; to be called before the application has begun."""
        self._inbox.get_nowait()
        self._inbox.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        self.leave()

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
        catalog = catalog_of_three()
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
    catalog, services = catalog_of_three(), []
    manager = FakeManager(catalog)

    @asynccontextmanager
    async def fake_stack(config: Config, keys: KeyRing) -> AsyncIterator[Stack]:
        services.append(FakeService(catalog))
        yield Stack(config, catalog=catalog, manager=manager, service=services[0], keys=keys)  # type: ignore[arg-type]

    app = create_app(Config(server=config), stack_factory=fake_stack)
    with _on_a_port(app, config) as (url, server, loop):
        yield Hosted(
            url, server, Served(app, app.state.stack, services[0], manager, httpx.AsyncClient()), loop
        )


@contextmanager
def _on_a_port(
    app: Starlette, config: ServerConfig
) -> Iterator[tuple[str, Server, asyncio.AbstractEventLoop]]:
    ready: Future[asyncio.AbstractEventLoop] = Future()
    bound = bind(config)
    server = Server(
        uvicorn_config(app, config), app, started=lambda: ready.set_result(asyncio.get_running_loop())
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        loop = ready.result(60)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server, loop
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        bound.close()


@pytest.fixture(scope="session")
def serving_files() -> Callable[[Config], AbstractContextManager[str]]:
    """The real application behind a real port: ``with serving_files(config) as url``."""

    @contextmanager
    def run(config: Config) -> Iterator[str]:
        with _on_a_port(create_app(config), config.server) as (url, _, _):
            yield url

    return run


@pytest.fixture
def say() -> Callable[..., str]:
    """What a model says to a prompt, greedily: ``say(url, "fable", "Once")``."""

    def ask(url: str, model: str, prompt: str = "Once upon a time", **options: Any) -> str:
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24, **options}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    return ask


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
