"""The README's examples, as they stand there, against the demo models."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from commands import ANSWER_SECONDS, ROOT, Serving, curl, serving, shardload, shell_commands

from shardload.config import parse_config

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    """All fenced blocks of a language, in order."""
    return [match["code"] for match in BLOCK.finditer(README) if match["language"] == language]


COMMANDS = [command for code in blocks("bash") for command in shell_commands(code)]


def first_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text)[:6])


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """The demo models, as the README's first command serves them."""
    with serving() as running:
        yield running


@pytest.mark.real
@pytest.mark.parametrize("command", COMMANDS, ids=first_words)
def test_commands(server: Serving, command: str) -> None:
    if command.startswith("curl "):
        response = curl(command.replace(ADDRESS, server.url))
        assert response.status_code == 200, response.text
        assert response.content
    else:
        done = shardload(*shlex.split(command)[1:], url=server.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


@pytest.mark.real
@pytest.mark.parametrize("code", blocks("python"), ids=first_words)
def test_python(server: Serving, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code.replace(ADDRESS, server.url)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        timeout=ANSWER_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("code", blocks("toml"), ids=first_words)
def test_configuration(code: str) -> None:
    assert parse_config(code, ROOT / "shardload.toml").routes


@pytest.mark.parametrize("command", shell_commands("".join(blocks("console"))), ids=first_words)
def test_tools(command: str) -> None:
    """What takes minutes is not run; it has to be there, and the benchmark has to know its options."""
    tool, *arguments = shlex.split(command, comments=True)
    assert os.access(ROOT / tool, os.X_OK)
    if tool == "tools/bench/run":
        words = [sys.executable, "-m", "tools.bench.run", *arguments, "--list"]
        listed = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=ANSWER_SECONDS)
        assert "single" in listed.stdout.splitlines(), listed.stderr


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 8
    assert len(blocks("python")) == 3
    assert {match["language"] for match in BLOCK.finditer(README)} == {
        "bash",
        "console",
        "python",
        "sh",  # ASGI servers: tests/server/test_hosts.py
        "toml",
    }
