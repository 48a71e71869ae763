"""The command as people run it: processes, signals and real models."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from commands import STOP_SECONDS, Serving, curl, serving, shardload, shell_commands

from shardload.demo import demo_folder

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as running:
        yield running


def test_the_announcement_fits_the_terminal_and_its_curl_lines_work(server: Serving) -> None:
    text, _, commands = server.printed.partition("\ncurl ")
    assert max(map(len, text.splitlines())) <= 80
    assert {"fable", "pirate", "embed"} <= set(re.findall(r"^\w+", text, re.MULTILINE))
    asked = shell_commands("curl " + commands)
    assert len(asked) == 4
    for command in asked:
        assert curl(command).status_code == 200


def test_the_life_of_a_model(server: Serving) -> None:
    assert shardload("load", "fable", url=server.url).returncode == 0
    assert re.search(r"^fable +open", shardload("ps", url=server.url).stdout, re.MULTILINE)
    assert shardload("pin", "fable", url=server.url).returncode == 0
    assert "pinned" in shardload("ps", url=server.url).stdout
    assert shardload("pin", "fable", "--off", url=server.url).returncode == 0
    assert shardload("unload", "fable", url=server.url).returncode == 0
    assert not re.search(r"^fable", shardload("ps", url=server.url).stdout, re.MULTILINE)


def test_loading_what_is_not_there_names_what_is(server: Serving) -> None:
    done = shardload("load", "parrot", url=server.url)
    assert done.returncode == 1
    assert "pirate" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_run_against_the_server_and_on_the_file_say_the_same(server: Serving) -> None:
    asked = ("hello", "--temperature", "0", "--max-tokens", "24")
    remote = shardload("run", "pirate", *asked, url=server.url)
    local = shardload("run", str(demo_folder() / "pirate.gguf"), *asked)
    assert remote.returncode == local.returncode == 0, remote.stderr + local.stderr
    assert remote.stdout == local.stdout != ""


def test_run_takes_a_question_from_a_pipe(server: Serving) -> None:
    done = shardload("run", "fable", url=server.url, stdin="Who are you?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not processes' ends there")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_peace(number: signal.Signals) -> None:
    with serving(demo_folder() / "embed.gguf") as server:
        server.process.send_signal(number)
        assert server.process.wait(STOP_SECONDS) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
def test_sighup_without_a_configuration_looks_at_the_folders(tmp_path: Path) -> None:
    shutil.copy(demo_folder() / "embed.gguf", tmp_path)
    with serving(tmp_path) as server, httpx.Client(base_url=server.url) as client:

        def names() -> set[str]:
            return {model["id"] for model in client.get("/v1/models").json()["data"]}

        shutil.copy(demo_folder() / "fable.gguf", tmp_path)
        body = {"model": "fable", "prompt": "Once", "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert names() == {"embed", "fable"}
        (tmp_path / "embed.gguf").unlink()
        server.process.send_signal(signal.SIGHUP)
        while "embed" in names():
            pass
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(STOP_SECONDS) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
def test_sighup_reads_the_configuration_again(tmp_path: Path) -> None:
    path = tmp_path / "shardload.toml"
    text = f'files = ["{demo_folder() / "embed.gguf"}"]\n[server]\napi_keys = ["first"]\n'
    path.write_text(text)
    with serving("--config", path) as server, httpx.Client(base_url=server.url) as client:
        path.write_text(text + '[models.vectors]\nbase = "embed"\n')
        server.process.send_signal(signal.SIGHUP)
        names: set[str] = set()
        while "vectors" not in names:
            answer = client.get("/v1/models", headers={"Authorization": "Bearer first"}).json()
            names = {model["id"] for model in answer["data"]}
    assert names == {"embed", "vectors"}
