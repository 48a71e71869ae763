from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import Result

from shardload_server.cli.remote import leaving, state_line

if TYPE_CHECKING:
    from conftest import FakeServer

Invoke = Callable[..., Result]


def model(name: str, **changes: object) -> dict[str, Any]:
    return {
        "name": name,
        "state": "closed",
        "aliases": [],
        "capabilities": ["chat", "completion"],
        "size_bytes": 2**20,
        "resident_bytes": 0,
        "private_bytes": 0,
        "ctx_tokens": 512,
        "leases": 0,
        "queued": 0,
        "pinned": False,
        "expires_in_seconds": None,
        "error": None,
        **changes,
    }


def test_list(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/models", {"models": [model("one", aliases=["uno"]), model("two", state="open")]})
    lines = invoke("list", "--url", fake_server.url).stdout.splitlines()
    assert lines[-2].split() == ["one", "(uno)", "closed", "1.0", "MiB", "512", "chat,", "completion"]
    assert lines[-1].startswith("two")


def test_list_as_json(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/models", {"models": [model("one")]})
    assert json.loads(invoke("list", "--json", "--url", fake_server.url).stdout) == [model("one")]


def test_ps_shows_what_is_not_closed(invoke: Invoke, fake_server: FakeServer) -> None:
    busy = model("busy", state="open", leases=2, warm_share=0.5, resident_bytes=2**18, private_bytes=2**21)
    broken = model("broken", state="failed", error="it is no model")
    fake_server.answer("/models", {"models": [model("away"), busy, broken]})
    result = invoke("ps", "--url", fake_server.url)
    assert "away" not in result.stdout
    assert "512.0 KiB of 1.0 MiB" in result.stdout
    assert "2.00 MiB" in result.stdout
    assert "busy open, 50 % warm" in " ".join(result.stdout.split())
    assert "broken: it is no model" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_ps_shows_where_the_bytes_are(invoke: Invoke, fake_server: FakeServer) -> None:
    bytes_of = {"shared_bytes": 2**20, "packed_bytes": 2**21, "second_layout_bytes": 3 * 2**20}
    bytes_of["private_bytes"] = 2**22
    moved = {"page_in_bytes": 2**23, "page_out_bytes": 2**24, "page_wait_seconds": 1.25}
    streaming = model("big", state="streaming", resident_limit_bytes=2**19, **bytes_of, **moved)
    fake_server.answer("/models", {"models": [streaming]})
    lines = invoke("ps", "--url", fake_server.url).stdout.splitlines()
    assert lines[-3].split("  ")[-1].strip() == "waited"
    cells = "1.00 MiB 2.00 MiB 3.00 MiB 4.00 MiB 8.00 MiB 16.0 MiB 1.2 s"
    assert lines[-1].split() == ["big", *cells.split()]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("state", "share", "words"),
    [
        ("open", 1.0, "open, 100 % warm"),
        ("open", 0.999, "open, 99 % warm"),
        ("parked", 0.001, "parked, <1 % warm"),
        ("streaming", 0.4, "streaming, 40 % warm"),
        ("closed", 0.0, "closed"),
        ("closed", 0.5, "closed, 50 % warm"),
        ("open", None, "open"),
        ("opening", 0.5, "opening"),
        ("failed", 0.5, "failed"),
    ],
)
def test_state_line(state: str, share: float | None, words: str) -> None:
    assert state_line(model("one", state=state, warm_share=share)) == words


def test_ps_of_an_idle_server(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/models", {"models": [model("away")]})
    assert invoke("ps", "--url", fake_server.url).stdout == "no model is open\n"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"pinned": True}, "pinned"),
        ({"leases": 1}, "in use"),
        ({}, "when room is needed"),
        ({"expires_in_seconds": 12.4}, "in 12 s"),
        ({"expires_in_seconds": 300.0}, "in 5 min"),
    ],
)
def test_leaving(state: dict[str, Any], words: str) -> None:
    assert leaving(model("one", **state)) == words


def test_list_shows_what_is_pinned(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/models", {"models": [model("one", state="closed", pinned=True), model("two")]})
    one, two = invoke("list", "--url", fake_server.url).stdout.splitlines()[-2:]
    assert "closed, pinned" in one
    assert "pinned" not in two


def test_names_are_shown_in_full(invoke: Invoke, fake_server: FakeServer) -> None:
    name = "a-name-as-long-as-those-of-merged-and-quantised-models-often-are-Q4_K_M"
    fake_server.answer("/models", {"models": [model(name, state="open", leases=4, queued=3)]})
    for command in ("list", "ps"):
        lines = invoke(command, "--url", fake_server.url).stdout.splitlines()
        table = lines[2 : lines.index("") if "" in lines else None]
        assert "".join(line.split("   ")[0].strip() for line in table) == name
        assert max(map(len, lines)) <= 80
    assert "4, 3 wait" in "\n".join(lines)


def test_load_sends_what_was_asked_for(invoke: Invoke, fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.answer("/models/load", {"success": True})
    file = tmp_path / "other.gguf"
    arguments = ["one", "--file", file, "--pin", "--keep-alive", "5m", "--api-key", "k"]
    assert invoke("load", *arguments, "--url", fake_server.url).exit_code == 0
    body = {"model": "one", "path": str(file), "pin": True, "keep_alive": "5m"}
    assert fake_server.asked == [("POST", "/models/load", body, "Bearer k")]


def test_unload_and_pin(invoke: Invoke, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDLOAD_URL", fake_server.url)
    fake_server.answer("/models/unload", {"success": True})
    fake_server.answer("/models/pin", {"success": True})
    assert invoke("unload", "one").stdout == "one is closed\n"
    fake_server.answer("/models/unload", {"success": True, "unpinned": ["one", "terse"]})
    assert invoke("unload", "one").stdout == "one is closed; no longer pinned: one, terse\n"
    assert invoke("pin", "one").stdout == "one is pinned\n"
    assert invoke("pin", "one", "--off").stdout == "one is no longer pinned\n"
    assert [body for _, _, body, _ in fake_server.asked[2:]] == [
        {"model": "one", "pinned": True},
        {"model": "one", "pinned": False},
    ]


def test_the_servers_words_are_shown(invoke: Invoke, fake_server: FakeServer) -> None:
    message = "the model 'x' does not exist; available: one"
    fake_server.answer("/models/unload", {"error": {"message": message}}, status=404)
    result = invoke("unload", "x", "--url", fake_server.url)
    assert result.exit_code == 1
    assert result.stderr == message + "\n"


def test_a_missing_key_says_how_to_give_one(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/models", {"error": {"message": "an API key is needed"}}, status=401)
    assert "--api-key or SHARDLOAD_API_KEY" in invoke("list", "--url", fake_server.url).stderr


def test_another_program_on_the_port(invoke: Invoke, fake_server: FakeServer) -> None:
    result = invoke("list", "--url", fake_server.url)
    assert result.exit_code == 1
    assert "answered 404, and not as a shardload server does" in result.stderr


@pytest.mark.parametrize(
    "body",
    [{"object": "list", "data": [{"id": "one"}]}, {"models": [{"name": "one", "model": "one"}]}, []],
    ids=["openai", "llama-server", "list"],
)
@pytest.mark.parametrize("command", ["list", "ps"])
def test_another_server_of_models(
    invoke: Invoke, fake_server: FakeServer, command: str, body: object
) -> None:
    fake_server.answer("/models", body)
    result = invoke(command, "--url", fake_server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    words = f"{fake_server.url} answers, but not as a shardload server does"
    assert " ".join(result.stderr.split()) == words


def test_a_name_of_other_letters_is_one_line(invoke: Invoke, fake_server: FakeServer) -> None:
    result = invoke("load", "\udcff", "--url", fake_server.url)
    assert result.exit_code == 1
    assert result.stderr == "what is to be sent is not all UTF-8\n"


def test_no_server(invoke: Invoke) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        result = invoke("ps", "--url", f"127.0.0.1:{unheard.getsockname()[1]}")
    assert result.exit_code == 1
    assert "shardload serve" in result.stderr


def test_a_name_that_no_host_has(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = invoke("ps", "--url", "foo")
    assert result.exit_code == 1
    words = "foo is no URL of a server: Name or service not known; write it like http://127.0.0.1:8080"
    assert " ".join(result.stderr.split()) == words


def test_no_url(invoke: Invoke) -> None:
    result = invoke("ps", "--url", "http://[broken")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
