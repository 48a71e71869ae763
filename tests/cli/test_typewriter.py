from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shardload_server.cli.typewriter import Typewriter


def typed(*pieces: str, width: int, new_line: bool = True) -> str:
    out = io.StringIO()
    typewriter = Typewriter(out, width=width)
    for piece in pieces:
        typewriter.write(piece)
    typewriter.end(new_line=new_line)
    return out.getvalue()


@pytest.mark.parametrize(
    ("pieces", "width", "lines"),
    [
        (("one t", "wo thr", "ee"), 8, ["one two ", "three"]),
        (("a\nb",), 8, ["a", "b"]),
        (("abcdefghij",), 4, ["abcd", "efgh", "ij"]),
        (
            ("\N{CJK UNIFIED IDEOGRAPH-65E5}" * 5,),
            4,
            ["\N{CJK UNIFIED IDEOGRAPH-65E5}" * n for n in (2, 2, 1)],
        ),
        (("ends\n",), 8, ["ends"]),
        ((), 8, [""]),
    ],
)
def test_words_stay_whole(pieces: tuple[str, ...], width: int, lines: list[str]) -> None:
    assert typed(*pieces, width=width) == "\n".join(lines) + "\n"


def test_nothing_steers_the_terminal() -> None:
    assert typed("a\x1b[2Jb\r\x9bc", width=40) == "a\ufffd[2Jb\ufffdc\n"


def test_a_word_is_shown_when_it_ends() -> None:
    out = io.StringIO()
    typewriter = Typewriter(out, width=40)
    typewriter.write("half a wo")
    assert out.getvalue() == "half a "
    typewriter.end(new_line=False)
    assert out.getvalue() == "half a wo"


def test_a_pipe_gets_what_was_said() -> None:
    out = io.StringIO()
    typewriter = Typewriter(out)
    typewriter.write("long " * 100 + "\x1b\r")
    typewriter.end(new_line=False)
    assert out.getvalue() == "long " * 100 + "\x1b\r"


@given(st.lists(st.text()), st.integers(2, 20))
def test_every_line_fits_and_nothing_is_lost(pieces: list[str], width: int) -> None:
    shown = typed(*pieces, width=width)
    assert all(cell_len(line.rstrip(" \t")) <= width for line in shown.split("\n") if "\t" not in line)
    plain = "".join(piece for piece in pieces).translate({ord(" "): None, ord("\n"): None, ord("\r"): None})
    kept = shown.replace(" ", "").replace("\n", "")
    assert len(kept) == len(plain)
