from __future__ import annotations

from pathlib import Path

import pytest
from server_fakes import FakeStatus
from tiny_gguf import write_llama

from shardload.library.opener import ShardResidency
from shardload_server.routes.shards import file_shards, shard_bodies

pytestmark = pytest.mark.anyio


async def test_shards_of_an_open_model(serve):
    async with serve() as served:
        response = await served.client.get("/models/ada/shards")
    body = response.json()
    assert (body["name"], body["state"], body["warm_share"]) == ("ada", "open", 0.5)
    assert [shard["name"] for shard in body["shards"]] == ["embeddings", "block 0"]
    second = body["shards"][1]
    assert (second["bytes"], second["resident_bytes"], second["second_layout_bytes"]) == (3096, 1548, 128)
    assert second["shared_with"] == ["grace"]
    assert served.manager.measured == 1


async def test_ids_with_slashes_and_aliases(serve):
    async with serve() as served:
        assert (await served.client.get("/models/org/model-alias/shards")).json()["name"] == "org/model"


async def test_an_unknown_model(serve, error_of):
    async with serve() as served:
        response = await served.client.get("/models/nobody/shards")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


async def test_a_file_that_is_gone(serve, error_of):
    async with serve() as served:
        served.manager.changes["ada"] = {"state": "closed", "shards": ()}
        response = await served.client.get("/models/ada/shards")
    assert response.status_code in (404, 400, 503)
    assert error_of(response)["message"]


@pytest.mark.parametrize(
    ("own", "others", "idle"),
    [
        ({"last_used": 90.0}, {"last_used": 40.0}, 10.0),
        ({"last_used": 40.0}, {"last_used": 90.0}, 10.0),
        ({"last_used": None}, {"last_used": 90.0}, 10.0),
        ({"last_used": None}, {"last_used": None}, None),
        ({"last_used": 40.0}, {"last_used": 50.0, "leases": 1}, 0.0),
    ],
)
def test_the_last_use_is_that_of_whoever_shares_it(own, others, idle) -> None:
    statuses = {"one": FakeStatus("one", **own), "two": FakeStatus("two", **others)}
    shard = ShardResidency("block 0", 10, 10, 0, ("two", "gone"))
    assert shard_bodies(statuses["one"], [shard], statuses, 100.0)[0]["idle_seconds"] == idle


def test_a_closed_file_is_looked_at(tmp_path: Path, serve) -> None:
    from dataclasses import replace

    from server_fakes import entry

    path = write_llama(tmp_path / "small.gguf")
    path.read_bytes()
    shards = file_shards(replace(entry("small"), path=path, paths=(path,)))
    assert [shard.name for shard in shards] == ["embeddings", "block 0", "block 1", "output"]
    assert all(0 < shard.resident_bytes <= shard.nbytes for shard in shards)
