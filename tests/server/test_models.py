from __future__ import annotations

from pathlib import Path

import pytest

from shardload.errors import AllPinned, CorruptGGUF, RequestError
from shardload_server.routes import shards

pytestmark = pytest.mark.anyio


async def test_the_list_of_models(serve):
    async with serve() as served:
        body = (await served.client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["ada", "grace", "org/model"]
    assert body["data"][0]["object"] == "model"
    assert body["data"][0]["created"] == 1700000000
    assert body["data"][0]["meta"]["n_ctx"] == 512


async def test_the_router_is_listed_where_there_are_rules_and_found_everywhere(serve):
    async with serve() as served:
        assert (await served.client.get("/v1/models/auto")).json()["id"] == "auto"
        assert "auto" not in (await served.client.get("/v1/models")).text


@pytest.mark.parametrize("path", ["org/model", "org%2Fmodel", "org/model-alias"])
async def test_one_model_whose_id_has_a_slash(serve, path):
    async with serve() as served:
        response = await served.client.get(f"/v1/models/{path}")
    assert response.json()["id"] == "org/model"


async def test_a_model_that_is_not_there(serve, error_of):
    async with serve() as served:
        response = await served.client.get("/v1/models/org/other")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models/new", None),
        ("GET", "/models/new/shards", None),
        ("POST", "/models/load", {"model": "new"}),
        ("POST", "/models/pin", {"model": "new"}),
        ("POST", "/v1/chat/completions", {"model": "new", "messages": [{"role": "user", "content": "Hi"}]}),
        ("POST", "/v1/completions", {"model": "new", "prompt": "Hi"}),
        ("POST", "/v1/embeddings", {"model": "new", "input": "Hi"}),
    ],
)
async def test_an_unknown_name_has_the_folders_looked_at(serve, monkeypatch, method, path, body):
    monkeypatch.setattr(shards, "file_shards", lambda entry: ())
    async with serve() as served:
        assert (await served.client.request(method, path, json=body)).status_code == 404
        served.manager.coming.append("new")
        assert (await served.client.request(method, path, json=body)).status_code == 200
        assert served.manager.looks == [False, False]
        assert (await served.client.request(method, path, json=body)).status_code == 200
        assert served.manager.looks == [False, False]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_a_list_has_what_has_come(serve, path):
    async with serve() as served:
        served.manager.coming.append("new")
        body = (await served.client.get(path)).json()
    assert [model["id"] for model in body["data"]] == ["ada", "grace", "org/model", "new"]


async def test_states(serve):
    async with serve() as served:
        body = (await served.client.get("/models")).json()
    first = body["models"][0]
    assert (first["name"], first["state"], first["resident_bytes"], first["leases"]) == (
        "ada",
        "open",
        2048,
        0,
    )
    assert body["data"][0]["status"] == {"value": "loaded", "args": []}
    assert body["data"][0]["source"] == "models_dir"


async def test_load(serve):
    async with serve() as served:
        response = await served.client.post(
            "/models/load",
            json={"model": "ada", "path": "/models/other.gguf", "pin": True, "keep_alive": "5m"},
        )
    assert response.json()["success"] is True
    assert response.json()["pinned"] is True
    assert served.manager.calls == [
        ("swap", "ada", Path("/models/other.gguf")),
        ("load", "ada", True, 300.0),
    ]


async def test_unload_tells_whose_pin_it_took(serve):
    async with serve() as served:
        served.manager.pinned |= {"ada", "grace"}
        first, again = [
            (await served.client.post("/models/unload", json={"model": "ada-alias"})).json() for _ in range(2)
        ]
    assert (first["unpinned"], again["unpinned"]) == (["ada"], [])
    assert not first["pinned"]
    assert served.manager.pinned == {"grace"}


async def test_unload_and_pin_by_alias(serve):
    async with serve() as served:
        assert (await served.client.post("/models/unload", json={"model": "ada-alias"})).json()[
            "name"
        ] == "ada"
        assert (
            await served.client.post("/models/pin", json={"model": "ada", "pinned": False})
        ).status_code == 200
    assert served.manager.calls == [("unload", "ada-alias"), ("pin", "ada", False)]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (RequestError("outside the served folders", param="path"), 400, None),
        (CorruptGGUF("/models/other.gguf", "truncated"), 400, "invalid_model_file"),
        (AllPinned("ada", 2, 1, ["grace"]), 503, "all_pinned"),
    ],
)
async def test_loads_that_fail(serve, error_of, failure, status, code):
    async with serve() as served:
        served.manager.failure = failure
        response = await served.client.post("/models/load", json={"model": "ada", "path": "/etc/passwd"})
    assert response.status_code == status
    assert error_of(response)["code"] == code


@pytest.mark.parametrize("path", ["/models/load", "/models/unload", "/models/pin"])
async def test_admin_of_an_unknown_model(serve, error_of, path):
    async with serve() as served:
        response = await served.client.post(path, json={"model": "nobody"})
        assert response.status_code == 404
        assert (await served.client.post(path, json={"model": 1})).status_code == 400
        response = await served.client.post(path, json={"model": "ada", "file": "/models/other.gguf"})
        assert response.status_code == 400
        assert "`file`" in error_of(response)["message"]
    assert served.manager.calls == []


async def test_a_server_that_stops_opens_nothing(serve):
    async with serve() as served:
        served.stack.begin_shutdown()
        response = await served.client.post("/models/load", json={"model": "ada"})
    assert response.status_code == 503
    assert served.manager.calls == []
