from __future__ import annotations

import logging

import httpx
import pytest

from shardload.config import Config, ServerConfig
from shardload.errors import ConfigError
from shardload_server.auth import KeyRing, configured_keys

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer one"}, {"authorization": "bearer  two"}, {"x-api-key": "one"}]
)
async def test_a_key_lets_in(serve, headers):
    async with serve(api_keys=("one", "two")) as served:
        assert (await served.client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer three"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic one"},
        {"Authorization": "one"},
        {"x-api-key": ""},
        {"x-api-key": "on"},
        {"x-api-key": "é\xff"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/", "/nowhere", "/models/load"])
async def test_no_key_or_a_wrong_one(serve, error_of, headers, path):
    async with serve(api_keys=("one", "two")) as served:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        response = await served.client.get(path, headers=encoded)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_liveness_needs_no_key(serve, path):
    async with serve(api_keys=("one",)) as served:
        assert (await served.client.get(path)).json() == {"status": "ok"}


def test_a_ring_takes_other_keys():
    ring = KeyRing(["old"])
    ring.replace(["new"])
    assert ring.admits("new")
    assert not ring.admits("old")
    assert not ring.admits(None)
    assert not KeyRing()


def test_keys_of_a_file_join_the_others(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the team\nalpha\n\n beta \n")
    assert configured_keys(ServerConfig(api_keys=("one", ""), api_key_file=str(file))) == (
        "one",
        "alpha",
        "beta",
    )


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="keys") as raised:
        configured_keys(ServerConfig(api_key_file=str(file)))
    assert str(raised.value).count(str(file)) == 1


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://example.com", 403),
        ("http://127.0.0.1.example.com", 403),
        ("http://localhost.example.com", 403),
        ("http://[", 403),
        ("null", 403),
        ("example.com", 403),
        ("http://192.168.1.5", 403),
        ("http://localhost:5173", 404),
        ("http://shop.localhost:5173", 404),
        ("http://127.0.0.1:3000", 404),
        ("http://[::1]:3000", 404),
        ("app://desktop", 404),
        ("file://", 404),
        ("", 404),
        (None, 404),
    ],
)
async def test_pages_of_strangers_post_nothing_where_no_key_is_wanted(serve, error_of, origin, status):
    headers = {"content-type": "text/plain"} | ({} if origin is None else {"origin": origin})
    async with serve() as served:
        response = await served.client.post("/models/unload", content='{"model": "nobody"}', headers=headers)
        assert response.status_code == status
        assert error_of(response)["message"]
        same = str(served.client.base_url).rstrip("/")
        response = await served.client.post("/models/unload", json={"model": "no"}, headers={"origin": same})
        assert response.status_code == 404
        assert (await served.client.get("/v1/models", headers=headers)).status_code == 200


def reached_at(served, address: str) -> httpx.AsyncClient:
    """A client whose requests come in at an address of this machine, whatever name they ask for."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=served.app), base_url=f"http://{address}:8080")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8080", 403),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("internal.evil.example", 403),
        ("[", 403),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.5:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST.", 200),
        ("shop.localhost", 200),
        ("host.docker.internal:8080", 200),
        ("", 200),
    ],
)
async def test_a_name_that_is_not_ours_may_be_a_page_that_had_it_lead_here(serve, error_of, host, status):
    headers = {"host": host, "origin": f"http://{host}"}
    async with serve() as served, reached_at(served, "127.0.0.1") as client:
        response = await client.get("/v1/models", headers=headers)
        assert response.status_code == status
        if status == 403:
            assert "allowed_hosts" in error_of(response)["message"]
            assert (await client.post("/models/unload", json={}, headers=headers)).status_code == 403
        assert (await client.get("/health", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"host": "0.0.0.0"}, "127.0.0.1"),  # a container, whose other names are many
        ({}, "172.17.0.2"),  # another host's socket, wider than ours
        ({"allowed_hosts": ["Models.Example"]}, "127.0.0.1"),  # behind a proxy that passes its name on
        ({"allowed_hosts": ["models.example"], "host": "0.0.0.0"}, "172.17.0.2"),
    ],
)
async def test_names_that_may_be_ours(serve, settings, address):
    page = {"host": "models.example", "origin": "https://models.example"}
    async with serve(**settings) as served, reached_at(served, address) as client:
        assert (await client.get("/v1/models", headers=page)).status_code == 200
        assert (await client.post("/models/unload", json={"model": "no"}, headers=page)).status_code == 404


async def test_a_page_of_an_allowed_host_may_post_whatever_name_the_proxy_asks_for(serve):
    async with serve(allowed_hosts=["models.example"]) as served, reached_at(served, "127.0.0.1") as client:
        for origin, status in (("https://models.example", 404), ("https://other.example", 403)):
            response = await client.post("/models/unload", json={"model": "no"}, headers={"origin": origin})
            assert response.status_code == status


async def test_names_that_are_allowed_keep_out_all_others(serve):
    settings = {"allowed_hosts": ["models.example"], "host": "0.0.0.0"}
    async with serve(**settings) as served, reached_at(served, "172.17.0.2") as client:
        headers = {"host": "evil.example"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 403
        assert (await client.get("/v1/models")).status_code == 200


async def test_with_a_key_the_name_is_anything(serve):
    async with serve(api_keys=("one",)) as served, reached_at(served, "127.0.0.1") as client:
        headers = {"host": "models.example", "x-api-key": "one"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_page_with_a_key_may_ask_from_anywhere(serve):
    async with serve(api_keys=("one",)) as served:
        headers = {"origin": "https://example.com", "x-api-key": "one"}
        response = await served.client.post("/models/unload", json={"model": "nobody"}, headers=headers)
    assert response.status_code == 404


@pytest.mark.parametrize(
    ("bound", "changed", "warned"),
    [
        ("0.0.0.0", ServerConfig(), True),
        ("0.0.0.0", ServerConfig(api_keys=("two",)), False),
        ("127.0.0.1", ServerConfig(host="0.0.0.0"), False),  # an address stays until a restart
    ],
)
async def test_a_reload_that_leaves_no_key_warns_where_others_come_in(serve, caplog, bound, changed, warned):
    async with serve(host=bound, api_keys=("one",)) as served, reached_at(served, "127.0.0.1") as client:
        with caplog.at_level(logging.WARNING, "shardload.server"):
            await served.stack.reconfigure(Config(server=changed))
        assert ("without an API key" in caplog.text) is warned
        named = await client.get("/v1/models", headers={"host": "models.example"})
        assert named.status_code == (200 if warned else 401 if changed.api_keys else 403)


async def test_a_reload_takes_other_names(serve):
    async with serve() as served, reached_at(served, "127.0.0.1") as client:
        headers = {"host": "models.example"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 403
        await served.stack.reconfigure(Config(server=ServerConfig(allowed_hosts=("models.example",))))
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
