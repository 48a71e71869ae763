"""The command as a process of its own, and what people type at it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
SHARDLOAD = (sys.executable, "-m", "shardload_server.cli")
STOP_SECONDS = 30
ANSWER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes requests, and what it has printed until then."""

    url: str
    printed: str
    process: subprocess.Popen[str]


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Serving]:
    """Serve on a free port for the time of the block."""
    command = [*SHARDLOAD, "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    ) as process:
        try:
            yield announced(process)
        finally:
            process.terminate()
            process.communicate(timeout=STOP_SECONDS)


def announced(process: subprocess.Popen[str]) -> Serving:
    """Read until the announcement is complete, which ends with an empty line."""
    assert process.stdout is not None
    printed, url = "", None
    for line in process.stdout:
        printed += line
        if found := re.search(r"Serving on (http://\S+)", line):
            url = found[1]
        if url and printed.endswith("\n\n") and printed.count("curl ") > 1:
            return Serving(url, printed, process)
    raise AssertionError(f"the server ended with {process.wait()}")


def shardload(*arguments: str, url: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*SHARDLOAD, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "SHARDLOAD_URL": url, "COLUMNS": "80"},
        cwd=ROOT,
        timeout=ANSWER_SECONDS,
    )


def shell_commands(text: str) -> list[str]:
    """The commands of a text, continued lines joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line]


def curl(command: str) -> httpx.Response:
    """Do what curl would; not every machine that runs these tests has it."""
    words = iter(shlex.split(command)[1:])
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
    method = "POST" if body else "GET"
    return httpx.request(method, target, headers=headers, content=body, timeout=ANSWER_SECONDS)
