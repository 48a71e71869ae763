from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.config import Config, load_config, parse_config
from shardload.errors import ConfigError

FULL = """\
# everything that there is
folders = ["models", "~/more"]
files = ["single.gguf"]

[server]
port = 9000
api_keys = ["one", "two"]
max_body_bytes = "1MiB"
shutdown_seconds = "1m"

[memory]
budget = "12GiB"

[engine]
ctx = 2048
kv_type = "q8_0"
keep_alive = "5m"

[store]
enabled = false
directory = "packed"
limit = "5GiB"

[parking]
memory = 0
disk = "2GiB"
directory = "parked"
idle = "5m"

[models."small.q4"]
file = "a/b.gguf"
aliases = ["small"]
pin = true
keep_alive = -1
parameters = { temperature = 0.2, stop = ["END"] }

[models.terse]
base = "small"
system = "Be brief."
kv_type = "q4_0"

[[routes]]
name = "long"
target = "small"
match = { model = "auto", min_prompt_tokens = 1000, headers = { x-tier = "gold" } }

[[routes]]
name = "rest"
target = "terse"
fallbacks = ["small"]
"""


def failure(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "/etc/shardload.toml")
    return caught.value


def test_full_file(tmp_path: Path) -> None:
    path = tmp_path / "shardload.toml"
    path.write_text(FULL)
    config = load_config(path)
    assert config.folders == (str(tmp_path / "models"), str(Path("~/more").expanduser()))
    assert config.files == (str(tmp_path / "single.gguf"),)
    assert config.server.port == 9000
    assert config.server.host == "127.0.0.1"
    assert config.server.max_body_bytes == 1024**2
    assert config.server.shutdown_seconds == 60
    assert config.memory.budget == 12 * 1024**3
    assert (config.engine.ctx, config.engine.keep_alive, config.engine.parallel) == (2048, 300.0, 4)
    assert config.engine.kv_type == "q8_0"
    assert (config.parking.memory, config.parking.disk, config.parking.idle) == (0, 2 * 1024**3, 300.0)
    assert config.parking.directory == str(tmp_path / "parked")
    assert (config.store.enabled, config.store.limit) == (False, 5 * 1024**3)
    assert config.store.directory == str(tmp_path / "packed")
    small = config.models["small.q4"]
    assert small.kv_type is None
    assert small.file == str(tmp_path / "a" / "b.gguf")
    assert (small.pin, small.keep_alive, small.parameters["temperature"]) == (True, -1, 0.2)
    assert (config.models["terse"].base, config.models["terse"].kv_type) == ("small", "q4_0")
    assert [route.name for route in config.routes] == ["long", "rest"]
    assert config.routes[0].match.headers == {"x-tier": "gold"}
    assert config.routes[1].fallbacks == ("small",)


def test_empty_file_is_the_default() -> None:
    config = parse_config("", "x.toml")
    assert (config.server, config.memory, config.engine) == (
        Config().server,
        Config().memory,
        Config().engine,
    )
    assert config.memory.budget is None


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[server]\nprot = 1\n", 2, "unknown key 'server.prot': did you mean 'port'?"),
        ("[sever]\nport = 1\n", 1, "unknown key 'sever': did you mean 'server'?"),
        ("\n\n[server]\nhost = 'a'\nport = 'x'\n", 5, "server.port: expected `int`, got `str`"),
        ("[server]\nport = 70000\n", 2, "server.port: expected `int` <= 65535"),
        ("[server]\nallowed_hosts = ['a:1']\n", 2, "server.allowed_hosts[0]: expected `str`"),
        ("[memory]\n\nbudget = 'lots'\n", 3, "memory.budget: 'lots' is not a size"),
        ("[memory]\nbudget = 12\n", 2, "memory.budget: 12 is a budget of 12 bytes: write it like '12GiB'"),
        ("[engine]\nkeep_alive = 'soon'\n", 2, "engine.keep_alive: 'soon' is not a duration"),
        ("[engine]\nkeep_alive = true\n", 2, "engine.keep_alive: True is not a duration"),
        ("[engine]\nkv_type = 'q5_0'\n", 2, "engine.kv_type: 'q5_0' is not one of f16, q8_0, q4_0"),
        ("[models.a]\nkv_type = 'f32'\n", 2, "models.a.kv_type: 'f32' is not one of f16, q8_0, q4_0"),
        ("[parking]\ndisk = 'lots'\n", 2, "parking.disk: 'lots' is not a size"),
        ("[store]\nlimit = 0\n", 2, "store.limit: the size 0 is out of range"),
        ("[store]\nenabled = 'off'\n", 2, "store.enabled: expected `bool`"),
        ("[parking]\nmemory = false\n", 2, "parking.memory: False is not a size"),
        ("[models.a]\nfile = 'a'\nbase = 'b'\n", 3, "the model 'a' has both file and base"),
        (
            "[models.a]\nfile = 'a'\n[models.b]\nfile = 1\n",
            4,
            "models.b.file: expected `str | null`, got `int`",
        ),
        ("[models.a.parameters]\ntemprature = 1\n", 2, "did you mean 'temperature'?"),
        ("[models.a]\nparameters = {top_k = 1.5}\n", 2, "models.a.parameters.top_k"),
        ("[models.a.parameters]\nseed = 1\ntemperature = -1\n", 3, "models.a.parameters.temperature"),
        ("[models.a.parameters]\ntemperature = inf\n", 2, "models.a.parameters.temperature"),
        ("[models.a.parameters]\ntop_p = 0\n", 2, "models.a.parameters.top_p"),
        ("[models.a.parameters]\nlogit_bias = {5 = 1e39}\n", 2, "models.a.parameters.logit_bias"),
        ("[models.a.parameters]\nlogit_bias = {x = 1}\n", 2, "models.a.parameters.logit_bias"),
        ("[models]\na = 1\n", 2, "models.a must be a table"),
        ("[models.auto]\nfile = 'x'\n", 1, "cannot be called 'auto'"),
        ("folders = ['a',\n 'b',\n 3]\n", 3, "folders[2] must be a path"),
        ("folders = 'a'\n", 1, "folders must be an array"),
        (
            "[[routes]]\nname = 'a'\ntarget = 'b'\n[[routes]]\nname = 'c'\n",
            4,
            "missing required field `target`",
        ),
        (
            "[[routes]]\nname='a'\ntarget='b'\n[[routes]]\nname='a'\ntarget='c'\n",
            5,
            "two routes are called 'a'",
        ),
        ("[[routes]]\nname='a'\ntarget='b'\n[routes.match]\nmodle='x'\n", 5, "did you mean 'model'?"),
        ("[[routes]]\nname='a'\ntarget='b'\nmatch.endpoint='chat room'\n", 4, "routes[0].match.endpoint"),
        ("[[routes]]\nname='a'\ntarget='b'\nmatch.headers.a=1\n", 4, "routes[0].match.headers"),
        ("[routes]\nname = 1\n", 1, "routes must be an array"),
        ("[server]\nport = \n", 2, "Invalid value"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        ("[server]\nhost = '''x\n", 3, "Expected"),
    ],
)
def test_error_names_key_and_line(text: str, line: int, says: str) -> None:
    error = failure(text)
    assert error.line == line
    assert says in str(error)
    assert str(error).startswith(f"/etc/shardload.toml:{line}: ")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)


def test_error_without_source() -> None:
    assert str(Config().error("the model 'x' is unknown", "models", "x")) == "the model 'x' is unknown"


def test_api_key_file_is_relative_to_the_configuration() -> None:
    config = parse_config("[server]\napi_key_file = 'keys.txt'\n", "/etc/shardload/main.toml")
    assert config.server.api_key_file == "/etc/shardload/keys.txt"


@given(st.text(max_size=60) | st.text("[]{}=.,\"'#\n ab1", max_size=60))
def test_any_text_is_a_config_or_an_error(text: str) -> None:
    lines = []
    try:
        parse_config(text, "x.toml")
    except ConfigError as error:
        lines.append(error.line)
    assert all(line is None or 1 <= line <= text.count("\n") + 1 for line in lines)
