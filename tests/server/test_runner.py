from __future__ import annotations

import logging
import signal
import socket

import httpx
import pytest

from shardload.config import Config, ServerConfig
from shardload.errors import ConfigError
from shardload_server.auth import is_loopback, warn_if_open
from shardload_server.runner import bind

BODY = {"model": "ada", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_a_stop_lets_the_running_answer_end(host, answer):
    hosted = host()
    running = hosted.call(lambda: answer("ada").say("some"))
    hosted.served.service.answers.append(running)
    with (
        httpx.Client(base_url=hosted.url) as kept,
        httpx.stream("POST", f"{hosted.url}/v1/chat/completions", json=BODY) as response,
    ):
        assert kept.get("/health").status_code == 200
        lines = response.iter_lines()
        assert "assistant" in next(lines)
        hosted.server.handle_exit(signal.SIGTERM, None)
        hosted.call(lambda: None)
        assert hosted.served.stack.in_flight.stopping
        hosted.call(running.end)
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_answers_off(host, answer, first, second):
    hosted = host()
    endless = hosted.call(lambda: answer("ada").say("some"))
    hosted.served.service.answers.append(endless)
    with httpx.stream("POST", f"{hosted.url}/v1/chat/completions", json=BODY) as response:
        lines = response.iter_lines()
        next(lines)
        hosted.server.handle_exit(first, None)
        hosted.server.handle_exit(second, None)
        assert "shutting_down" in [line for line in lines if line][-1]
    hosted.call(endless.closed.wait)


def test_a_reload_reaches_the_parts(host):
    hosted = host(api_keys=("old",))
    changed = Config(server=ServerConfig(api_keys=("new",)))
    hosted.call(lambda: hosted.served.stack.reconfigure(changed))
    assert hosted.served.manager.calls == [("reconfigure", changed)]
    headers = {"x-api-key": "new"}
    assert httpx.get(f"{hosted.url}/v1/models", headers=headers).status_code == 200
    assert httpx.get(f"{hosted.url}/v1/models", headers={"x-api-key": "old"}).status_code == 401


def test_a_reload_without_a_configuration_looks_at_the_folders_at_once(host):
    hosted = host()
    hosted.call(hosted.server._begin_reload)
    hosted.call(lambda: hosted.server._reloading)
    assert hosted.served.manager.looks == [True]


def test_a_signal_in_the_middle_of_a_reload_asks_for_another(host):
    hosted = host()
    changed = [Config(server=ServerConfig(api_keys=(key,))) for key in ("old", "new")]

    def read():
        config = changed[len(hosted.served.manager.calls)]
        if config is changed[0]:
            hosted.server._begin_reload()
        return config

    hosted.server._reload_config = read
    hosted.call(hosted.server._begin_reload)
    hosted.call(lambda: hosted.server._reloading)
    assert hosted.served.manager.calls == [("reconfigure", config) for config in changed]


def test_an_address_that_is_taken():
    with bind(ServerConfig(port=0)) as bound:
        bound.listen()
        with pytest.raises(ConfigError, match="in use"):
            bind(ServerConfig(port=bound.getsockname()[1]))


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match=r"host\.invalid"):
        bind(ServerConfig(host="host.invalid"))


def test_an_address_of_the_other_family():
    with bind(ServerConfig(host="::1", port=0)) as bound:
        assert bound.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host_name", "keys", "warned"),
    [
        ("127.0.0.1", (), False),
        ("localhost", (), False),
        ("::1", (), False),
        ("0.0.0.0", (), True),
        ("", (), True),
        ("example.org", (), True),
        ("0.0.0.0", ("key",), False),
    ],
)
def test_a_warning_when_others_can_come_in(caplog, host_name, keys, warned):
    with caplog.at_level(logging.WARNING, "shardload.server"):
        warn_if_open(ServerConfig(host=host_name, api_keys=keys))
    assert bool(caplog.records) is warned
    assert is_loopback("127.0.0.53")
