"""The application under three ASGI hosts, each a process of its own, with llama.cpp and the demo models."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import pytest

from shardload.demo import demo_folder
from shardload_server.app import CONFIG_VARIABLE

pytestmark = pytest.mark.real

HOSTS = {
    "uvicorn": (["--port", "{port}"], "running on"),
    "hypercorn": (["--bind", "127.0.0.1:{port}"], "Running on"),
    "granian": (["--port", "{port}"], "Started worker-1"),
}
README = Path(__file__).parents[2] / "README.md"
MESSAGES = [{"role": "user", "content": "Hello, who are you?"}]
LONG = {"model": "fable", "prompt": "Once upon a time", "ignore_eos": True, "stream": True}


def from_the_readme(host: str) -> list[str]:
    """The arguments with which the README starts a host."""
    (line,) = re.findall(rf"^{CONFIG_VARIABLE}=\S+ {host} (.+)$", README.read_text("utf-8"), re.MULTILINE)
    return shlex.split(line)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def config(tmp_path):
    """One thread: hosts are tested here, and a second would fight with whatever else this machine does."""
    file = tmp_path / "shardload.toml"
    file.write_text(f'folders = ["{demo_folder()}"]\n[engine]\nthreads = 1\n')
    return file


@contextmanager
def running(host: str, config: Path) -> Iterator[str]:
    """The URL of a host that serves; it must end by SIGTERM."""
    more, sign = HOSTS[host]
    arguments = [*from_the_readme(host), *more]
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", host, *(each.format(port=port) for each in arguments)],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", CONFIG_VARIABLE: str(config)},
    )
    assert process.stdout is not None
    seen = ""
    try:
        while sign not in seen:
            line = process.stdout.readline()
            assert line, f"{host} ended: {seen}"
            seen += line
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        seen += process.communicate(timeout=60)[0]
        assert "Traceback" not in seen
    finally:
        # A host's own children too, when something above went wrong.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("host", HOSTS)
def test_a_host(host, config):
    with (
        running(host, config) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert {"embed", "fable", "pirate"} <= {model.id for model in client.models.list()}
        whole = client.chat.completions.create(model="pirate", messages=MESSAGES, temperature=0)
        stream = client.chat.completions.create(model="pirate", messages=MESSAGES, temperature=0, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content != ""
        assert len(client.embeddings.create(model="embed", input="a boat").data[0].embedding) > 1
        with pytest.raises(openai.NotFoundError, match="fable"):
            client.chat.completions.create(model="nobody", messages=MESSAGES)
        leave_in_the_middle(url)


def leave_in_the_middle(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG) as response:
        assert next(response.iter_lines()).startswith("data: ")
    # Answers when nobody holds the model any more.
    assert httpx.post(f"{url}/models/unload", json={"model": "fable"}, timeout=60).status_code == 200
    text = httpx.get(f"{url}/metrics").text
    assert 'shardload_requests_total{endpoint="completions",model="fable",status="499"} 1.0' in text
