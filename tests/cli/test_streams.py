"""The command in a process of its own, between streams that are not as one would like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from commands import SHARDLOAD

if TYPE_CHECKING:
    from conftest import FakeServer

posix = pytest.mark.skipif(sys.platform == "win32", reason="a closed stream and a left pipe are POSIX's")


def run(
    *arguments: str | Path,
    stdin: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    shell: str = "",
    encoding: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; ``shell`` is what a shell would redirect."""
    words = [*SHARDLOAD, *map(str, arguments)]
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", *words] if shell else words
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["COLUMNS"] = "80"
    if encoding:
        environment["PYTHONIOENCODING"] = encoding
    return subprocess.run(command, input=stdin, stdout=stdout, stderr=stderr, env=environment)


@posix
@pytest.mark.parametrize(
    "options", [["inspect", "--tensors"], ["inspect", "--json"], ["run", "--help"]], ids=" ".join
)
def test_a_reader_who_left_is_no_error(model_file: Path, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*options, *([] if "--help" in options else [model_file]), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@posix
def test_nor_is_one_who_left_the_errors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("inspect", tmp_path / "missing.gguf", stderr=writer)
    os.close(writer)
    assert (done.returncode, done.stdout) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("options", [["--tensors"], ["--json"]], ids=" ".join)
def test_a_full_disk_is_one_line(model_file: Path, options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("inspect", *options, model_file, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"No space left on device\n")


@posix
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_closed_output_is_written_to_nobody(model_file: Path, options: list[str]) -> None:
    done = run("inspect", *options, model_file, shell="<&- >&-")
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_closed_input_is_no_question(fake_server: FakeServer) -> None:
    done = run("run", "one", "--url", fake_server.url, shell="<&-")
    assert (done.returncode, done.stderr) == (2, b"the prompt is empty\n")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_input_that_is_no_text_is_marked_and_asked(fake_server: FakeServer, errors: str) -> None:
    fake_server.answer("/v1/models/one", {"id": "one"})
    fake_server.stream("/v1/chat/completions", {"choices": [{"delta": {"content": "Good day"}}]})
    done = run(
        "run",
        "one",
        "--url",
        fake_server.url,
        stdin=b"caf\xc3\xa9 \xff",
        encoding=f"utf-8:{errors}",
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"Good", b"day"])
    assert fake_server.asked[-1][2]["messages"][0]["content"] == "café \N{REPLACEMENT CHARACTER}"


def test_output_without_the_letters_shows_the_others(model_file: Path) -> None:
    done = run("inspect", model_file, encoding="ascii:strict")
    assert done.returncode == 0, done.stderr
    assert b"blk.0" in done.stdout
