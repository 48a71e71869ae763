from __future__ import annotations

import io
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

from shardload.errors import PromptTooLong
from shardload_server.cli import run as command
from shardload_server.cli.talk import Messages, RunOptions, is_file

if TYPE_CHECKING:
    from conftest import FakeServer

Invoke = Callable[..., Result]
OPTIONS = RunOptions(model="parrot", url="")


class Parrot:
    """Says what it was told last; some words make it fail."""

    def __init__(self) -> None:
        self.heard: list[Messages] = []
        self.stopped = self.closed = False

    def answer(self, messages: Messages) -> Generator[str, None, None]:
        self.heard.append(messages)
        text = messages[-1]["content"]
        if text == "too long":
            raise PromptTooLong(99, 10)
        try:
            yield "you said "
            if text == "stop me":
                raise KeyboardInterrupt
            yield text
        finally:
            self.stopped = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    made = Parrot()
    monkeypatch.setattr(command, "talker", lambda _: made)
    return made


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let somebody type lines at a terminal, and leave with Ctrl-D."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    def type_lines(*lines: str | type[BaseException]) -> None:
        left: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

        def ask(_: str) -> str:
            line = next(left)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", ask)

    return type_lines


def contents(messages: Messages) -> list[str]:
    return [message["content"] for message in messages]


def test_a_conversation_remembers(
    parrot: Parrot, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("hello", "again")
    command.run(OPTIONS, None)
    assert capsys.readouterr().out == "you said hello\nyou said again\n\n"
    assert contents(parrot.heard[1]) == ["hello", "you said hello", "again"]
    assert parrot.closed


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_words_that_leave(parrot: Parrot, typed: Callable[..., None], word: str) -> None:
    typed("hello", word, "never heard")
    command.run(OPTIONS, None)
    assert contents(parrot.heard[-1]) == ["hello"]
    assert parrot.closed


def test_clear_keeps_the_system_message(parrot: Parrot, typed: Callable[..., None]) -> None:
    typed("hello", "/clear", "again")
    command.run(RunOptions(model="parrot", url="", system="be a parrot"), None)
    assert contents(parrot.heard[1]) == ["be a parrot", "again"]
    assert parrot.heard[1][0]["role"] == "system"


@pytest.mark.parametrize("word", ["/help", "/?"])
def test_help_says_what_there_is(
    parrot: Parrot, typed: Callable[..., None], capsys: pytest.CaptureFixture[str], word: str
) -> None:
    typed(word)
    command.run(OPTIONS, None)
    assert parrot.heard == []
    told = capsys.readouterr().err
    assert [told.count(known) for known in ("/bye", "/clear", "/?")] == [2, 2, 2]


@pytest.mark.parametrize("line", ["/set parameter seed 3", "/Clear", "/unknown"])
def test_what_is_no_command_is_told_and_not_asked(
    parrot: Parrot, typed: Callable[..., None], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    typed("hello", line, "again")
    command.run(OPTIONS, None)
    assert contents(parrot.heard[-1]) == ["hello", "you said hello", "again"]
    assert f"{line.split()[0]} is no command" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["/etc/hosts is what?", "/ is a slash", "what is /etc", "/no_think why?"])
def test_a_slash_alone_is_no_command(parrot: Parrot, typed: Callable[..., None], line: str) -> None:
    typed(line)
    command.run(OPTIONS, None)
    assert contents(parrot.heard[-1]) == [line]


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    parrot: Parrot, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("stop me", KeyboardInterrupt, "go on")
    command.run(OPTIONS, None)
    assert parrot.stopped
    assert contents(parrot.heard[-1]) == ["go on"]
    assert "(stopped)" in capsys.readouterr().err


def test_a_refused_question_leaves_the_conversation(
    parrot: Parrot, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("hello", "too long", "again")
    command.run(OPTIONS, None)
    assert contents(parrot.heard[-1]) == ["hello", "you said hello", "again"]
    assert "99 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "piped", "asked"),
    [("say", "", "say"), (None, "from a pipe\n", "from a pipe"), ("sum up", "a text\n", "sum up\n\na text")],
)
def test_prompt_and_pipe(parrot: Parrot, invoke: Invoke, prompt: str | None, piped: str, asked: str) -> None:
    result = invoke("run", "parrot", *([prompt] if prompt else []), stdin=piped)
    assert result.stdout == f"you said {asked}\n"
    assert contents(parrot.heard[0]) == [asked]


def test_nothing_to_ask(parrot: Parrot, invoke: Invoke) -> None:
    assert invoke("run", "parrot", stdin=" \n").exit_code == 2
    assert not parrot.heard


def test_ctrl_c_ends_a_single_answer(parrot: Parrot, invoke: Invoke) -> None:
    assert invoke("run", "parrot", "stop me", stdin="").exit_code == 130


def test_history_survives(parrot: Parrot, typed: Callable[..., None]) -> None:
    typed("hello")
    command.run(OPTIONS, None)
    assert command.history_path().exists()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("a.gguf", True),
        ("org/a.gguf", True),
        ("./a", True),
        ("../a", True),
        ("/a", True),
        ("~/a", True),
        ("folder/there", True),
        ("folder", False),
        ("org/model", False),
        ("storyteller", False),
        ("auto", False),
    ],
)
def test_is_file(model: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "there").touch()
    assert is_file(model) is expected


@pytest.mark.parametrize(
    ("name", "path"), [("org/pir", "org/pir"), ("c# 100%?", "c%23%20100%25%3F"), ("é", "%C3%A9")]
)
def test_a_server_is_asked_for_any_name(
    invoke: Invoke, fake_server: FakeServer, name: str, path: str
) -> None:
    fake_server.answer(f"/v1/models/{path}", {"id": name})
    fake_server.stream("/v1/chat/completions", piece("Good day"))
    result = invoke("run", name, "hello", "--url", fake_server.url, stdin="")
    assert (result.exit_code, result.stdout) == (0, "Good day\n")
    assert fake_server.asked[-1][2]["model"] == name


def piece(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_a_running_server_answers(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/v1/models/one", {"id": "one"})
    start = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    fake_server.stream("/v1/chat/completions", start, piece("Good "), piece("day"), {"choices": []})
    arguments = [
        "one",
        "hello",
        "--seed",
        "3",
        "--max-tokens",
        "5",
        "--system",
        "be kind",
        "--url",
        fake_server.url,
    ]
    result = invoke("run", *arguments, stdin="")
    assert result.stdout == "Good day\n"
    assert fake_server.asked[-1][2] == {
        "model": "one",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
        "stream": True,
        "seed": 3,
        "max_tokens": 5,
    }


def test_the_router_may_choose(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/v1/models", {"object": "list", "data": []})
    fake_server.stream("/v1/chat/completions", piece("Good day"))
    result = invoke("run", "auto", "hello", "--url", fake_server.url, stdin="")
    assert (result.exit_code, result.stdout) == (0, "Good day\n")
    assert fake_server.asked[-1][2]["model"] == "auto"


def test_an_unknown_model_is_told_before_a_question(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/v1/models/two", {"error": {"message": "no such model"}}, status=404)
    result = invoke("run", "two", "hello", "--url", fake_server.url, stdin="")
    assert result.exit_code == 1
    assert result.stderr == "no such model\n"


def test_an_error_inside_a_stream(invoke: Invoke, fake_server: FakeServer) -> None:
    fake_server.answer("/v1/models/one", {"id": "one"})
    fake_server.stream(
        "/v1/chat/completions", piece("Goo"), {"error": {"message": "the server is shutting down"}}
    )
    result = invoke("run", "one", "hello", "--url", fake_server.url, stdin="")
    assert result.exit_code == 1
    assert "shutting down" in result.stderr


def test_a_missing_file_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", tmp_path / "missing.gguf", "hello", stdin="")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
