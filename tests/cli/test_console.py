from __future__ import annotations

import pytest

from shardload_server.cli.console import count, percent, short_bytes, stdout, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (555 * 2**20, "555 MiB"),
        (999 * 2**20 + 2**19, "0.98 GiB"),
        (5 * 2**40, "5.00 TiB"),
    ],
)
def test_short_bytes(value: int, text: str) -> None:
    assert short_bytes(value) == text
    assert len(short_bytes(value)) <= 8


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.001, "<1 %"), (0.5, "50 %"), (0.999, "99 %"), (1.0, "100 %")],
)
def test_none_and_all_are_exact(share: float, text: str) -> None:
    assert percent(share) == text


def test_count() -> None:
    assert (count(1, "model"), count(0, "model")) == ("1 model", "0 models")


@pytest.mark.parametrize(("columns", "lines"), [("", 3), ("80", 6)])
def test_programs_get_a_row_in_one_line(
    columns: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    made = table("model", "state")
    made.add_row("a-name-of-many-letters-" * 10, "open")
    stdout().print(made)
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_programs_get_no_blanks_at_the_end_of_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = table("model", "for")
    made.add_row("a", "chat, completion")
    made.add_row("b", "embedding")
    for columns in ("", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        stdout().print(made)
        printed = capsys.readouterr().out
        assert [line.split() for line in printed.splitlines()][-1] == ["b", "embedding"]
        assert printed.endswith("embedding\n")
        assert [line for line in printed.splitlines() if line != line.rstrip()] == []
