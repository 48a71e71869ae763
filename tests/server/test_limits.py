from __future__ import annotations

import asyncio
import logging

import anyio.lowlevel
import pytest

from shardload_server import limits

pytestmark = pytest.mark.anyio


async def test_a_body_that_announces_too_much(serve, error_of):
    async with serve(max_body_bytes=100) as served:
        response = await served.client.post("/v1/completions", content=b"x" * 101)
        assert response.status_code == 413
        assert "100 bytes" in error_of(response)["message"]
        assert error_of(response)["code"] == "request_too_large"


async def test_a_body_that_grows_too_large(serve, error_of):
    async def chunks():
        for _ in range(100):
            yield b"x" * 10

    async with serve(max_body_bytes=100) as served:
        response = await served.client.post("/v1/completions", content=chunks())
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"


async def test_a_body_of_the_limit_is_taken(serve):
    body = b'{"model": "ada", "prompt": "x"}'
    async with serve(max_body_bytes=len(body)) as served:
        assert (await served.client.post("/v1/completions", content=body)).status_code == 200


@pytest.mark.parametrize("length", ["9" * 5000, "1e9", "-1", "٣"])
async def test_lengths_that_are_none(serve, length):
    async with serve(max_body_bytes=100) as served:
        response = await served.client.post(
            "/v1/completions", content=b"x" * 101, headers={"content-length": length.encode()}
        )
        assert response.status_code == 413


async def test_a_body_that_stops_in_the_middle(serve, error_of, monkeypatch):
    async def chunks():
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(limits, "SILENCE_SECONDS", 0.01)
    async with serve() as served:
        response = await served.client.post("/v1/completions", content=chunks())
        assert response.status_code == 408
        assert error_of(response)["code"] == "request_timeout"


async def test_a_client_may_wait_for_its_answer_for_as_long_as_it_takes(serve, answer, monkeypatch):
    monkeypatch.setattr(limits, "SILENCE_SECONDS", 0.0)
    async with serve() as served:
        slow = answer("ada")
        served.service.answers.append(slow)
        exchange = served.exchange("/v1/completions", prompt="x")
        await slow.waiting.wait()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        slow.say("there").end()
        assert (await exchange.start())["status"] == 200
        assert b"there" in await exchange.rest()


async def test_a_client_that_leaves_in_the_middle_of_its_body(serve, caplog):
    async with serve() as served:
        exchange = served.exchange("/v1/completions", prompt="x")
        exchange.cut_short()
        with caplog.at_level(logging.INFO):
            await exchange.task
        assert exchange.sent.empty()
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "POST /v1/completions -> 499" in caplog.text


async def test_a_path_is_one_line_of_the_log(serve, caplog):
    async with serve() as served:
        with caplog.at_level(logging.INFO, "shardload.server"):
            await served.client.get("/a%0aforged")
        assert "GET /a%0Aforged -> 404" in caplog.text
