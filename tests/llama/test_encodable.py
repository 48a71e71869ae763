from __future__ import annotations

import itertools

from shardload.llama.encodable import BYTE_TOKENS, CONTROL, SPACE, USER_DEFINED, SentencePieceAlphabet

NORMAL = 1 << 2


def alphabet(*tokens: tuple[str, int], adds_space: bool = True) -> SentencePieceAlphabet:
    return SentencePieceAlphabet.read(tokens, adds_space=adds_space)


def test_with_all_byte_tokens_nothing_else_is_read() -> None:
    endless = itertools.chain(((name, NORMAL) for name in BYTE_TOKENS), itertools.repeat(("x", NORMAL)))
    read = SentencePieceAlphabet.read(endless)
    assert read.has_all_bytes
    assert read.offender("anything: 日本", False) is None


def test_the_first_missing_character_is_named() -> None:
    letters = alphabet((SPACE, NORMAL), ("a", NORMAL), ("ab", NORMAL))
    assert letters.offender("a a", False) is None
    assert letters.offender("ab", False) == "b"
    assert letters.offender("", False) is None


def test_some_byte_tokens_stand_in_for_their_characters() -> None:
    letters = alphabet((SPACE, NORMAL), ("<0x0A>", NORMAL), ("<0xC3>", NORMAL), ("<0xA9>", NORMAL))
    assert letters.offender("\né", False) is None
    assert letters.offender("è", False) == "è"


def test_the_blank_in_front_needs_a_token() -> None:
    assert alphabet(("a", NORMAL)).offender("a", False) == " "
    assert alphabet(("a", NORMAL), adds_space=False).offender("a", False) is None
    assert alphabet(("a", NORMAL), adds_space=False).offender("a a", False) == " "


def test_special_tokens_are_taken_out_longest_first() -> None:
    letters = alphabet(
        (SPACE, NORMAL), ("a", NORMAL), ("<x>", CONTROL), ("<x>>", CONTROL), ("#", USER_DEFINED)
    )
    assert letters.offender("<x>>a<x>", True) is None
    assert letters.offender("<x>a", False) == "<"
    assert letters.offender("a##a", False) is None
