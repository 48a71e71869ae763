from __future__ import annotations

import pytest

from shardload.config import ServerConfig
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
        ("http://[", 403),
        ("http://localhost:5173", 404),
        ("http://127.0.0.1:3000", 404),
        ("app://desktop", 404),
        ("null", 404),
        (None, 404),
    ],
)
async def test_pages_of_strangers_post_nothing_where_no_key_is_wanted(serve, error_of, origin, status):
    headers = {"content-type": "text/plain"} | ({"origin": origin} if origin else {})
    async with serve() as served:
        response = await served.client.post("/models/unload", content='{"model": "nobody"}', headers=headers)
        assert response.status_code == status
        assert error_of(response)["message"]
        same = str(served.client.base_url).rstrip("/")
        response = await served.client.post("/models/unload", json={"model": "no"}, headers={"origin": same})
        assert response.status_code == 404
        assert (await served.client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_page_with_a_key_may_ask_from_anywhere(serve):
    async with serve(api_keys=("one",)) as served:
        headers = {"origin": "https://example.com", "x-api-key": "one"}
        response = await served.client.post("/models/unload", json={"model": "nobody"}, headers=headers)
    assert response.status_code == 404
