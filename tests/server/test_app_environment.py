from __future__ import annotations

import logging

import httpx
import pytest
from starlette.applications import Starlette

from shardload_server.app import app_from_environment

pytestmark = pytest.mark.anyio


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """An application from a file with a key or without, and from a variable or without."""

    def make(in_file: str = "", variable: str | None = None) -> Starlette:
        file = tmp_path / "shardload.toml"
        file.write_text(f"[server]\napi_keys = [{in_file}]\n")
        monkeypatch.setenv("SHARDLOAD_CONFIG", str(file))
        if variable is None:
            monkeypatch.delenv("SHARDLOAD_API_KEY", raising=False)
        else:
            monkeypatch.setenv("SHARDLOAD_API_KEY", variable)
        return app_from_environment()

    return make


async def status_of(app: Starlette, key: str | None) -> int:
    # Wherever the key lets in, there is nothing: the models are not opened for this.
    headers = {"x-api-key": key} if key else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        return (await client.get("/nowhere", headers=headers)).status_code


async def test_the_key_of_the_variable_is_asked_for(asked, caplog):
    app = asked(variable="secret  second")
    assert await status_of(app, None) == 401
    assert await status_of(app, "third") == 401
    assert await status_of(app, "secret") == await status_of(app, "second") == 404
    assert not caplog.records


async def test_the_key_of_the_variable_joins_those_of_the_file(asked):
    app = asked('"filed"', "secret")
    assert await status_of(app, None) == 401
    assert await status_of(app, "filed") == await status_of(app, "secret") == 404


@pytest.mark.parametrize("variable", [None, "", " "])
async def test_a_warning_without_any_key(asked, caplog, variable):
    with caplog.at_level(logging.WARNING, "shardload.server"):
        assert await status_of(asked(variable=variable), None) == 404
    assert "SHARDLOAD_API_KEY" in caplog.text
    caplog.clear()
    asked('"filed"', variable)
    assert not caplog.records
