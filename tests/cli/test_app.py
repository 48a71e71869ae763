from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from shardload._version import __version__
from shardload.errors import ConfigError

Invoke = Callable[..., Result]

HELPS = [
    [],
    ["serve"],
    ["run"],
    ["list"],
    ["ps"],
    ["load"],
    ["unload"],
    ["pin"],
    ["inspect"],
    ["pack"],
    ["store"],
    ["store", "list"],
    ["store", "verify"],
    ["store", "prune"],
    ["store", "clear"],
    ["doctor"],
    ["config"],
    ["config", "check"],
    ["route"],
    ["route", "explain"],
]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_fits_a_screen(invoke: Invoke, command: list[str]) -> None:
    result = invoke(*command, "--help")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from shardload_server.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'shardload', 'numpy', 'httpx', 'starlette', 'uvicorn', 'llama_cpp', 'cffi', 'msgspec'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdin=subprocess.DEVNULL)


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"shardload {__version__}\n"


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardload_server.cli", "--version"], capture_output=True, check=True
    )
    assert done.stdout.decode().startswith("shardload ")


@pytest.mark.parametrize("arguments", [["fly"], ["inspect"], ["serve", "--port", "70000"], ["--what"]])
def test_wrong_usage_is_exit_code_2(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_an_error_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("config", "check", tmp_path / "missing.toml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "missing.toml" in result.stderr


def test_debug_keeps_the_traceback(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--debug", "config", "check", tmp_path / "missing.toml")
    assert isinstance(result.exception, ConfigError)


def test_an_unforeseen_error_is_not_hidden(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("shardload_server.cli.doctor.doctor", explode)
    assert isinstance(invoke("doctor").exception, ZeroDivisionError)
