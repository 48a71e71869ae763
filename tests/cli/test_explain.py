from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from typer.testing import Result

from shardload.config import load_config
from shardload.routing import Decision
from shardload.runtime import assembled
from shardload_server.cli.explain import parse

Invoke = Callable[..., Result]


@pytest.fixture
def config_file(model_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "shardload.toml"
    path.write_text(
        f"""
        files = ["{model_file}"]
        [models.polite]
        base = "small"
        [[routes]]
        name = "gold"
        target = "polite"
        match = {{headers = {{x-tier = "gold"}}}}
        """
    )
    return path


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}))
    return path


def test_the_rule_that_chose_and_those_that_did_not(
    invoke: Invoke, config_file: Path, request_file: Path
) -> None:
    result = invoke("route", "explain", request_file, "--config", config_file)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "small   by auto"
    assert "gold: no, header x-tier is not 'gold'" in result.stdout


def test_a_server_would_decide_the_same(
    invoke: Invoke, model_file: Path, request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` takes the model with the least to read, and what the system has cached is not read."""
    (tmp_path / "warm.gguf").write_bytes(model_file.read_bytes())
    monkeypatch.setattr(
        "shardload.memory.file_resident_bytes", lambda path: 2000 if path.stem == "warm" else 1000
    )
    path = tmp_path / "shardload.toml"
    path.write_text(f"files = ['{model_file}', '{tmp_path / 'warm.gguf'}']")
    explained = json.loads(invoke("route", "explain", request_file, "--config", path, "--json").stdout)

    async def decide() -> Decision:
        async with assembled(load_config(path)) as parts:
            await parts.manager.measure()
            return parts.service.plan(parse(body, None)).decision

    body = request_file.read_bytes()
    chosen = [[each.entry.name, each.reason] for each in anyio.run(decide).candidates]
    assert [name for name, _ in chosen] == ["warm", "small"]
    assert explained["candidates"] == chosen


def test_headers_reach_the_rules(invoke: Invoke, config_file: Path, request_file: Path) -> None:
    arguments = [request_file, "--config", config_file, "--header", "X-Tier: gold", "--json"]
    found = json.loads(invoke("route", "explain", *arguments).stdout)
    assert (found["model"], found["rule"]) == ("polite", "gold")
    assert found["candidates"] == [["polite", "target of gold"]]


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"prompt": "hi"}, 0), ({"messages": [{"role": "user", "content": "hi"}]}, 0), ({}, 1)],
)
def test_the_endpoint_is_told_by_the_body(
    invoke: Invoke, config_file: Path, body: dict[str, object], expected: int
) -> None:
    text = json.dumps({"model": "small", **body})
    result = invoke("route", "explain", "-", "--config", config_file, stdin=text)
    assert result.exit_code == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ('{"model": "nobody", "prompt": "hi"}', "small"),
        ('{"model": 1, "prompt": "hi"}', "model"),
        ('{"model": "small", "input": "hi", "dimensions": 0}', "dimensions"),
    ],
)
def test_a_request_at_fault_is_one_line(invoke: Invoke, config_file: Path, text: str, words: str) -> None:
    result = invoke("route", "explain", "-", "--config", config_file, stdin=text)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("wrong", [["--endpoint", "dance"], ["--header", "nothing"]])
def test_wrong_options(invoke: Invoke, config_file: Path, request_file: Path, wrong: list[str]) -> None:
    assert invoke("route", "explain", request_file, "--config", config_file, *wrong).exit_code == 1
