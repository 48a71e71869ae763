"""The README's examples, as they stand there, against the demo models."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shardload.config import parse_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    """All fenced blocks of a language, in order."""
    return [match["code"] for match in BLOCK.finditer(README) if match["language"] == language]


def commands() -> list[str]:
    """Every command of the blocks that are for a shell, continued lines joined."""
    return [line for code in blocks("bash") for line in code.replace("\\\n", " ").splitlines() if line]


def first_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text)[:6])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The demo models on a free port, as the README's first command serves them."""
    command = [sys.executable, "-m", "shardload_server.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    ) as running:
        try:
            yield announced_url(running)
        finally:
            running.terminate()
            running.communicate(timeout=30)


def announced_url(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError(f"the server ended with {running.wait()}")


def request(command: str, url: str) -> httpx.Response:
    """What curl would send; not every machine that runs these tests has it."""
    words = iter(shlex.split(command.replace(ADDRESS, url))[1:])
    headers: dict[str, str] = {}
    target, body = "", None
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(":")
            headers[name] = value.strip()
        elif word == "-d":
            body = next(words)
        else:
            target = word
    return httpx.request("POST" if body else "GET", target, headers=headers, content=body, timeout=60)


@pytest.mark.real
@pytest.mark.parametrize("command", commands(), ids=first_words)
def test_commands(server: str, command: str) -> None:
    if command.startswith("curl "):
        response = request(command, server)
        assert response.status_code == 200, response.text
        assert response.content
        return
    words = [sys.executable, "-m", "shardload_server.cli", *shlex.split(command)[1:]]
    environment = {**os.environ, "SHARDLOAD_URL": server}
    done = subprocess.run(
        words, capture_output=True, stdin=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.real
@pytest.mark.parametrize("code", blocks("python"), ids=first_words)
def test_python(server: str, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code.replace(ADDRESS, server)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("code", blocks("toml"), ids=first_words)
def test_configuration(code: str) -> None:
    config = parse_config(code, ROOT / "shardload.toml")
    assert config.routes


def test_there_is_something_to_run() -> None:
    assert len(commands()) >= 8
    assert len(blocks("python")) == 3
