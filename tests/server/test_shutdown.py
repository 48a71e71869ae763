"""A stop under load: a process of its own, over a real socket, with llama.cpp and a demo model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest

from shardload.demo import demo_folder

pytestmark = pytest.mark.real

SERVE = """
import sys
from shardload.config import load_config
from shardload_server.runner import serve
serve(load_config(sys.argv[1]), ready=lambda port: print(port, flush=True))
"""
CLIENTS = 6
LONG = {"model": "fable", "prompt": "Once upon a time", "ignore_eos": True, "stream": True}


@pytest.fixture
def start(tmp_path):
    processes = []

    def run(shutdown_seconds):
        file = tmp_path / "shardload.toml"
        file.write_text(
            f'folders = ["{demo_folder()}"]\n[engine]\nthreads = 1\n'
            f"[server]\nport = 0\nshutdown_seconds = {shutdown_seconds}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        port = process.stdout.readline()
        assert port, process.communicate()[1]
        return process, f"http://127.0.0.1:{int(port)}"

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("shutdown_seconds", [0, 60])
def test_a_stop_under_load(start, shutdown_seconds):
    process, url = start(shutdown_seconds)
    with ThreadPoolExecutor(CLIENTS) as pool, httpx.Client(timeout=120) as client:
        streams = [client.stream("POST", f"{url}/v1/completions", json=LONG) for _ in range(CLIENTS)]
        responses = list(pool.map(lambda stream: stream.__enter__(), streams))
        assert all(response.status_code == 200 for response in responses)
        os.kill(process.pid, signal.SIGTERM)
        texts = list(pool.map(lambda response: response.read().decode(), responses))
        for stream in streams:
            stream.__exit__(None, None, None)
    ends = [last_event(text) for text in texts]
    if shutdown_seconds:
        assert ends == ["[DONE]"] * CLIENTS
    else:
        assert all(end == "[DONE]" or code_of(end) == "shutting_down" for end in ends)
        assert any(end != "[DONE]" for end in ends)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def last_event(text: str) -> str:
    return text.rstrip("\n").rpartition("\n\n")[2].removeprefix("data: ")


def code_of(event: str) -> str:
    code: str = msgspec.json.decode(event)["error"]["code"]
    return code


def test_an_idle_server_stops_at_once(start):
    process, url = start(60)
    assert httpx.get(f"{url}/health").status_code == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
