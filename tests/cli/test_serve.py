from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import Result

from shardload.config import Config, KvType
from shardload.errors import ConfigError, UnsupportedLlama
from shardload.library.catalog import Catalog
from shardload.runtime import Parts
from shardload_server.cli.options import KV_TYPES
from shardload_server.cli.serve import ServeOptions, announce, base_url, configure, curl_lines

Invoke = Callable[..., Result]


def test_files_and_folders_are_told_apart(model_file: Path, tmp_path: Path) -> None:
    config = configure(ServeOptions(paths=(model_file, tmp_path)))
    assert (config.files, config.folders) == ((str(model_file),), (str(tmp_path),))


def test_without_anything_the_demo_models_are_served() -> None:
    config = configure(ServeOptions())
    assert len(Catalog.from_config(config).entries()) >= 3


def test_options_win_over_the_file(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "shardload.toml"
    path.write_text(
        f'files = ["{model_file}"]\n[server]\nport = 1\nhost = "::1"\n[engine]\nctx = 64\nparallel = 2'
    )
    options = ServeOptions(
        config=path, port=2, ctx=128, budget="1GiB", threads=3, gpu_layers=5, api_keys=("k",)
    )
    config = configure(options)
    assert (config.server.port, config.server.host, config.server.api_keys) == (2, "::1", ("k",))
    assert (config.engine.ctx, config.engine.parallel, config.engine.threads) == (128, 2, 3)
    assert (config.engine.gpu_layers, config.memory.budget) == (5, 2**30)
    assert config.folders == ()


def test_store_and_kv_type(model_file: Path, tmp_path: Path) -> None:
    config = configure(ServeOptions(paths=(model_file,), store=str(tmp_path / "store"), kv_type="q8_0"))
    assert (config.store.enabled, config.store.directory) == (True, str(tmp_path / "store"))
    assert config.engine.kv_type == "q8_0"
    assert not configure(ServeOptions(paths=(model_file,), store="off")).store.enabled


def test_a_kv_type_that_is_none(invoke: Invoke, model_file: Path) -> None:
    result = invoke("serve", model_file, "--kv-type", "q9")
    assert result.exit_code == 2
    assert "'--kv-type': 'q9' is none of f16, q8_0, q4_0" in result.stderr


def test_kv_types_are_those_of_a_configuration() -> None:
    assert set(KV_TYPES) == set(get_args(KvType))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.gguf: no such file or folder"):
        configure(ServeOptions(paths=(tmp_path / "missing.gguf",)))


def test_a_budget_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--budget"):
        configure(ServeOptions(budget="much"))
    with pytest.raises(ConfigError, match="'12' is a budget of 12 bytes"):
        configure(ServeOptions(budget="12"))


def test_a_folder_without_models(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("serve", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr


def test_a_file_that_is_no_model_says_why(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    result = invoke("serve", path)
    assert result.exit_code == 1
    assert "is empty" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_port_in_use(invoke: Invoke, model_file: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = invoke("serve", model_file, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "cannot listen on 127.0.0.1" in result.stderr
    assert result.stderr.endswith("already in use; choose another with --port\n")


def test_parts_that_do_not_open_are_one_line(
    invoke: Invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unopenable(_: Config) -> AbstractAsyncContextManager[Parts]:
        raise UnsupportedLlama("llama-cpp-python is of another age")

    monkeypatch.setattr("shardload_server.stack.assembled", unopenable)
    result = invoke("serve", model_file, "--port", 0)
    assert result.exit_code == 1
    assert result.stderr == "llama-cpp-python is of another age\n"


def test_the_announcement(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(files=(str(model_file),))
    announce(config, Catalog.from_config(config), 4321)
    text = capsys.readouterr().out
    assert "http://127.0.0.1:4321" in text
    assert "small" in text


def test_curl_lines_are_commands(model_file: Path) -> None:
    entries = Catalog.from_config(Config(files=(str(model_file),))).entries()
    lines = curl_lines("http://127.0.0.1:1", entries, keyed=True)
    command = shlex.split(lines[1].replace("\\\n", " "))
    assert command[:2] == ["curl", "http://127.0.0.1:1/v1/chat/completions"]
    assert "Authorization: Bearer $SHARDLOAD_API_KEY" in command
    assert json.loads(command[-1])["model"] == "small"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_base_url(host: str, url: str) -> None:
    assert base_url(host, 80) == url


def test_config_check_says_what_is_there(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / ("long-name-" * 12) / "shardload.toml"
    path.parent.mkdir()
    path.write_text(f'files = ["{model_file}"]')
    assert invoke("config", "check", path).stdout == f"{path}: good; 1 model, 0 routes\n"
    path.write_text(f"""
        files = ["{model_file}"]
        [models.polite]
        base = "small"
        aliases = ["kind"]
        [[routes]]
        name = "any"
        target = "kind"
        fallbacks = ["auto", "small"]
        match = {{ model = "what clients call it" }}
    """)
    assert "good; 2 models, 1 route\n" in invoke("config", "check", path).stdout


@pytest.mark.parametrize(
    ("route", "line", "words"),
    [
        (
            'target = "smal"',
            4,
            "the target of the route 'r' is 'smal', which is no model: did you mean 'small'?",
        ),
        ('fallbacks = ["auto",\n"x"]\ntarget = "small"', 5, "a fallback of the route 'r' is 'x'"),
    ],
)
def test_config_check_finds_rules_for_models_that_are_not_there(
    invoke: Invoke, model_file: Path, tmp_path: Path, route: str, line: int, words: str
) -> None:
    path = tmp_path / "shardload.toml"
    path.write_text(f'files = ["{model_file}"]\n[[routes]]\nname = "r"\n{route}')
    result = invoke("config", "check", path)
    assert result.exit_code == 1
    assert f"{path}:{line}: {words}" in result.stderr


def test_config_check_warns_of_a_file_that_a_rule_needs(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    path = tmp_path / "shardload.toml"
    path.write_text('folders = ["."]\n[[routes]]\nname = "r"\ntarget = "broken"')
    result = invoke("config", "check", path)
    assert result.exit_code == 0
    assert "broken.gguf" in result.stderr


def test_config_check_names_the_line(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "shardload.toml"
    path.write_text("# a comment\n[server]\nport = 'eighty'\n")
    result = invoke("config", "check", path)
    assert result.exit_code == 1
    assert f"{path}:3:" in result.stderr


@pytest.mark.parametrize("content", [None, "# no key\n"])
def test_config_check_reads_the_file_of_keys(
    invoke: Invoke, model_file: Path, tmp_path: Path, content: str | None
) -> None:
    path, keys = tmp_path / "shardload.toml", tmp_path / "keys"
    path.write_text(f'files = ["{model_file}"]\n[server]\napi_key_file = "keys"\n')
    if content is not None:
        keys.write_text(content)
    result = invoke("config", "check", path)
    assert result.exit_code == 1
    assert str(keys) in result.stderr
    assert not result.stdout
    keys.write_text("alpha\n")
    assert invoke("config", "check", path).exit_code == 0
