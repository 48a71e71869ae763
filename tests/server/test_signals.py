"""Signals to a process of its own, over a real socket, with llama.cpp and a demo model."""

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
import logging, sys
from shardload.config import load_config
from shardload_server.runner import serve
logging.basicConfig(level=logging.INFO)
read = lambda: load_config(sys.argv[1])
serve(read(), ready=lambda port: print(port, flush=True), reload=read)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(start, number):
    process, url = start(60)
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        assert process.stderr is not None
        while "may finish" not in process.stderr.readline():
            pass
        process.send_signal(number)
        assert code_of([line for line in lines if line][-1].removeprefix("data: ")) == "shutting_down"
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_changed_configuration_is_taken_over(start, tmp_path):
    process, url = start(60)
    file = tmp_path / "shardload.toml"
    was = file.read_text()
    assert process.stderr is not None

    def reload(text, sign):
        file.write_text(text)
        process.send_signal(signal.SIGHUP)
        while sign not in (line := process.stderr.readline()):
            assert line

    assert httpx.get(f"{url}/v1/models/teller").status_code == 404
    reload(f'{was}\n[models.teller]\nbase = "fable"\n', "taken over")
    assert httpx.get(f"{url}/v1/models/teller").json()["id"] == "teller"
    reload("this is = not TOML =", "stays as it was")
    assert httpx.get(f"{url}/v1/models/teller").status_code == 200
    reload(f"api_keys = 3\n{was}", "stays as it was")
    reload(was, "taken over")
    assert httpx.get(f"{url}/v1/models/teller").status_code == 404


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
