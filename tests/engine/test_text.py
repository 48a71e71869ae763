from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from shardload.engine.text import TextAssembler

ALPHABET = "aabß€🎈"
stops_strategy = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def assemble(pieces: list[bytes], stops: list[str]) -> tuple[str, str | None, list[str]]:
    assembler = TextAssembler(stops)
    sent = []
    for piece in pieces:
        sent.append(assembler.feed(piece))
        if assembler.stop_string is not None:
            break
    sent.append(assembler.finish())
    return "".join(sent), assembler.stop_string, sent


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the plain meaning of a stop string."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.text(ALPHABET, max_size=30), st.lists(st.integers(0, 200), max_size=20), stops_strategy)
@example("ab€", [3, 4], ["b€"])
def test_any_cut_gives_the_text_up_to_the_first_stop_string(
    text: str, places: list[int], stops: list[str]
) -> None:
    assembled, stop, _ = assemble(cut(text.encode(), places), stops)
    assert (assembled, stop) == first_stop(text, stops)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20), stops_strategy)
def test_invalid_bytes_become_replacement_characters_at_any_cut(
    data: bytes, places: list[int], stops: list[str]
) -> None:
    assembled, stop, _ = assemble(cut(data, places), stops)
    assert (assembled, stop) == first_stop(data.decode(errors="replace"), stops)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, stops: list[str]) -> None:
    assembler = TextAssembler(stops)
    sent = ""
    for position, character in enumerate(text, 1):
        sent += assembler.feed(character.encode())
        if assembler.stop_string is not None:
            return
        held = text[len(sent) : position]
        assert any(stop.startswith(held) for stop in stops)
    assert assembler.finish() == text[len(sent) :]


def test_a_character_is_sent_when_its_last_byte_has_come() -> None:
    assembler = TextAssembler()
    pieces = [assembler.feed(bytes([byte])) for byte in "a🎈b".encode()]
    assert pieces == ["a", "", "", "", "🎈", "b"]
    assert assembler.finish() == ""


def test_what_is_left_of_a_character_at_the_end_is_replaced() -> None:
    assembler = TextAssembler(["�!"])
    assert assembler.feed("x€".encode()[:-1]) == "x"
    assert assembler.finish() == "�"


def test_nothing_follows_a_stop_string() -> None:
    assembler = TextAssembler(["END"])
    assert assembler.feed(b"one E") == "one "
    assert assembler.feed(b"ND two") == ""
    assert assembler.stop_string == "END"
    assert assembler.feed(b"more") == ""
    assert assembler.finish() == ""


def test_an_empty_stop_string_is_no_stop_string() -> None:
    assembler = TextAssembler([""])
    assert assembler.feed(b"abc") == "abc"
