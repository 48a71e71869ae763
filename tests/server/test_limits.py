from __future__ import annotations

import pytest

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
