from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from fake_library import write_model
from server_fakes import FakeStatus
from service_fakes import FakeManager

from shardload.config import parse_config
from shardload.engine import Lane
from shardload.errors import OpenFailed
from shardload.library.catalog import Catalog
from shardload.library.lease import OpenProgress
from shardload.service import Service
from shardload_server import generation
from shardload_server.app import create_app
from shardload_server.stack import Stack

pytestmark = pytest.mark.anyio

CONFIG = """
folders = ["."]

[[routes]]
name = "paying"
target = "large"
fallbacks = ["small"]
match = { headers = { X-Tier = "gold" } }

[[routes]]
name = "long texts"
target = "long"
fallbacks = ["large", "small"]
match = { min_prompt_tokens = 20 }
"""
LONG = "word " * 40


class RoutedManager(FakeManager):
    def status(self):
        return [FakeStatus(name, state="closed", resident_bytes=0) for name in ("large", "long", "small")]

    async def look_again(self):
        pass

    async def lease(self, entry, *, progress=None, **options):
        if progress is not None:
            progress(OpenProgress(entry.name, "opening", 0.5))
        return await super().lease(entry, **options)


@pytest.fixture
async def routed(tmp_path):
    """A client of a server with the rules above, and the manager whose models fail when a test says so."""
    for name in ("small", "large", "long"):
        write_model(tmp_path / f"{name}.gguf")
    config = parse_config(CONFIG, tmp_path / "shardload.toml")
    with Lane() as lane:
        manager, catalog = RoutedManager(lane), Catalog.from_config(config)
        manager.answering = asyncio.Event()

        @asynccontextmanager
        async def stack(config, keys):
            service = Service(catalog, manager, config.routes)
            yield Stack(config, catalog=catalog, manager=manager, service=service, keys=keys)

        app = create_app(config, stack_factory=stack)

        async def watched(scope, receive, send):
            async def noticed(message):
                manager.answering.set()
                await send(message)

            await app(scope, receive, noticed)

        transport = httpx.ASGITransport(app=watched)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client, manager


def choice(response):
    headers = response.headers
    return headers.get("x-shardload-model"), headers.get("x-shardload-rule")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "headers", "broken", "expected"),
    [
        ("Hi", {"x-tier": "gold"}, (), ("large", "paying")),
        (LONG, {"X-TIER": "gold"}, (), ("large", "paying")),
        ("Hi", {"x-tier": "gold"}, ("large",), ("small", "paying")),
        (LONG, {"x-tier": "tin"}, (), ("long", "long texts")),
        (LONG, {}, ("long",), ("large", "long texts")),
        (LONG, {}, ("long", "large"), ("small", "long texts")),
        ("Hi", {}, (), ("large", "auto")),
        ("Hi", {}, ("large", "long"), ("small", "auto")),
    ],
)
async def test_rules_choose_and_headers_tell(routed, prompt, headers, broken, expected, stream):
    client, manager = routed
    manager.failures = {name: OpenFailed(name, "broken") for name in broken}
    body = {"model": "auto", "prompt": prompt, "max_tokens": 3, "stream": stream}
    response = await client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200
    assert choice(response) == expected
    if stream:
        assert response.text.endswith("data: [DONE]\n\n")
        assert f'"model":"{expected[0]}"' in response.text
    else:
        assert response.json()["model"] == expected[0]


async def test_the_router_is_a_model_among_the_others(routed):
    client, _ = routed
    *found, last = (await client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in found] == ["large", "long", "small"]
    assert last == (await client.get("/v1/models/auto")).json()
    assert (last["id"], last["object"]) == ("auto", "model")
    assert last["capabilities"] == found[0]["capabilities"] != []
    assert last.keys() == found[0].keys()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rule_whose_models_all_fail_tells_of_the_first(routed, error_of, stream):
    client, manager = routed
    manager.failures = {name: OpenFailed(name, f"{name} is broken") for name in ("large", "small")}
    body = {"model": "auto", "prompt": "Hi", "stream": stream}
    response = await client.post("/v1/completions", json=body, headers={"x-tier": "gold"})
    assert response.status_code == 503
    assert "large is broken" in error_of(response)["message"]


@pytest.mark.parametrize(("model", "expected"), [("auto", (None, "long texts")), ("long", ("long", "name"))])
async def test_a_slow_open_goes_out_with_the_headers_that_are_known(routed, monkeypatch, model, expected):
    monkeypatch.setattr(generation, "GRACE_SECONDS", 0.0)
    client, manager = routed
    manager.gate = asyncio.Event()
    body = {"model": model, "prompt": LONG, "max_tokens": 3, "stream": True}
    request = asyncio.create_task(client.post("/v1/completions", json=body))
    await manager.answering.wait()
    manager.gate.set()
    response = await request
    assert choice(response) == expected
    assert "loading" in response.text
