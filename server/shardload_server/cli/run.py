"""``shardload run``: one answer, or a conversation, in the terminal."""

from __future__ import annotations

import os
import re
import sys
from contextlib import closing, suppress
from pathlib import Path

import typer

from shardload.errors import RequestError
from shardload_server.cli import console
from shardload_server.cli.talk import RunOptions, Talker, talker
from shardload_server.cli.typewriter import Typewriter

HISTORY_LINES = 1000
HINT = "Ctrl-C stops an answer, Ctrl-D or /bye leaves, /clear starts over, /? helps."
LEAVING = ("/bye", "/exit", "/quit")
"""What people type who come from other programs."""
HELP = ("/?", "/help")
COMMAND = re.compile(r"/(?!(?:no_)?think\b)[\w?]+(?!\S)")
"""What begins as a command does; a path has a second slash, and two words are for Qwen models."""


def run(options: RunOptions, prompt: str | None) -> None:
    """Answer the prompt and what is piped in; with neither, talk until Ctrl-D."""
    interactive = sys.stdin.isatty()
    text = prompt if interactive else _joined(prompt, sys.stdin.read())
    if text is not None and not text.strip():
        console.fail("the prompt is empty", 2)
    with closing(talker(options)) as source:
        if text is not None:
            # Outside of a conversation Ctrl-C ends the command.
            if _answer(source, [*_opening(options), {"role": "user", "content": text}]) is None:
                raise typer.Exit(130)
        else:
            _converse(source, options)


def _joined(prompt: str | None, piped: str) -> str:
    return "\n\n".join(part for part in (prompt, piped.rstrip("\n")) if part)


def _opening(options: RunOptions) -> list[dict[str, str]]:
    return [{"role": "system", "content": options.system}] if options.system else []


def _answer(source: Talker, messages: list[dict[str, str]]) -> str | None:
    """Print an answer as it comes; returns it, or None if Ctrl-C stopped it."""
    pieces: list[str] = []
    stopped = False
    answer = source.answer(messages)
    typewriter = Typewriter(sys.stdout)
    try:
        for piece in answer:
            typewriter.write(piece)
            pieces.append(piece)
    except KeyboardInterrupt:
        stopped = True
    finally:
        with suppress(KeyboardInterrupt):
            answer.close()
        typewriter.end(new_line=bool(pieces) or sys.exception() is None)
    return None if stopped else "".join(pieces)


def _converse(source: Talker, options: RunOptions) -> None:
    console.stderr().print(HINT, style="bright_black")
    messages = _opening(options)
    with _history():
        while (line := _ask()) is not None and line not in LEAVING:
            if line == "/clear":
                messages = _opening(options)
            elif line in HELP:
                console.stderr().print(HINT, style="bright_black")
            elif found := COMMAND.match(line):
                console.complain(f"{found[0]} is no command: /? shows what there is")
            elif line:
                messages = _turn(source, messages, line)
    if line is None:
        sys.stdout.write("\n")


def _turn(source: Talker, messages: list[dict[str, str]], line: str) -> list[dict[str, str]]:
    """One question and its answer; a question that has none leaves the conversation as it was."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        answer = _answer(source, asked)
    except RequestError as error:
        console.complain(f"{console.phrase(error)} (/clear starts over)")
        return messages
    except typer.Exit:  # the server said no, and its words are printed
        return messages
    if answer is None:
        console.stderr().print("(stopped)", style="bright_black")
        return messages
    return [*asked, {"role": "assistant", "content": answer}]


def _ask() -> str | None:
    """The next line, "" for one given up with Ctrl-C, None at the end."""
    try:
        return input(">>> ").strip()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return ""
    except EOFError:
        return None


class _history:
    """Lines typed before, kept in the user's state folder where readline is there."""

    def __enter__(self) -> None:
        try:
            import readline
        except ImportError:  # Windows
            return
        with suppress(OSError):
            readline.read_history_file(history_path())

    def __exit__(self, *_: object) -> None:
        readline = sys.modules.get("readline")
        if readline is None:
            return
        path = history_path()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(HISTORY_LINES)
            readline.write_history_file(path)
            path.chmod(0o600)


def history_path() -> Path:
    """Where typed lines are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "shardload" / "history"
