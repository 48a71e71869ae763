"""Which texts a SentencePiece vocabulary can encode.

llama.cpp ends the process on a character for which such a vocabulary has neither a token nor byte tokens,
so it is asked only for texts that pass here. Its tokenizer merges single characters into longer and longer
tokens; what never merged is looked up as a single character and then byte by byte. A text is safe when
each of its characters is a token or falls back to bytes that are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
SPACE = "\u2581"  # what a blank is called in SentencePiece vocabularies
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class SentencePieceAlphabet:
    """The single characters, byte tokens and special tokens of a vocabulary."""

    has_all_bytes: bool
    characters: frozenset[str] = frozenset()
    byte_values: frozenset[int] = frozenset()
    special: tuple[tuple[str, bool], ...] = ()  # text, and whether it is read only on request
    adds_space: bool = True

    @classmethod
    def read(cls, tokens: Iterable[tuple[str, int]], *, adds_space: bool = True) -> SentencePieceAlphabet:
        """Look through (text, attributes) of all tokens, or until all byte tokens were seen."""
        characters, missing = set(), set(BYTE_TOKENS)
        special: list[tuple[str, bool]] = []
        for text, attributes in tokens:
            if text in missing:
                missing.discard(text)
                if not missing:
                    return cls(has_all_bytes=True)
            if len(text) == 1:
                characters.add(text)
            if text and attributes & (UNKNOWN | CONTROL | USER_DEFINED):
                special.append((text, not attributes & USER_DEFINED))
        return cls(
            False,
            frozenset(characters),
            frozenset(int(name[3:5], 16) for name in BYTE_TOKENS - missing),
            # Longer special tokens are found first.
            tuple(sorted(special, key=lambda item: -len(item[0].encode("utf-8", "surrogateescape")))),
            adds_space,
        )

    def offender(self, text: str, parse_special: bool) -> str | None:
        """The first character that cannot be encoded, or None."""
        if self.has_all_bytes:
            return None
        pieces = [text] if text else []
        for special, on_request in self.special:
            if parse_special or not on_request:
                pieces = [part for piece in pieces for part in piece.split(special)]
        remaining = "".join(pieces)
        if not remaining:
            return None
        # Each piece may get a blank in front.
        for character in dict.fromkeys(
            (" " + remaining if self.adds_space else remaining).replace(" ", SPACE)
        ):
            if character not in self.characters and not self.byte_values.issuperset(character.encode()):
                return " " if character == SPACE else character
        return None
