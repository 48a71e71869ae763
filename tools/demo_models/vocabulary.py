"""Three vocabularies, one for each model, learned from text and encoded exactly as llama.cpp encodes them.

`Pieces` is SentencePiece with byte tokens (`llama`), `Bytes` is byte-level BPE with whole words (`gpt2`,
split as by Llama 3), `Words` is WordPiece (`bert`). Each gives the fields of its tokenizer in a GGUF file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
SPACE = "\u2581"

_PIECE = re.compile(f"{SPACE}?[A-Za-z]+|{SPACE}?[^A-Za-z{SPACE}]|{SPACE}", re.DOTALL)
_LLAMA3 = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}"
    r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")

Symbols = tuple[str, ...]


def _merged(symbols: Symbols, left: str, right: str) -> Symbols:
    """Return the symbols with each pair of left and right joined."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and joined[-1] == left and symbol == right:
            joined[-1] = left + right
        else:
            joined.append(symbol)
    return tuple(joined)


def learn_merges(counts: Mapping[str, int], most: int, power: float) -> list[tuple[str, str]]:
    """Learn at most that many byte-pair merges from words and how often they occur.

    A word counts by a power of its frequency: below one, rare words become tokens too.
    """
    words = {tuple(word): int(count**power) for word, count in sorted(counts.items())}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: dict[Symbols, int] = {}
        for symbols, count in words.items():
            symbols = _merged(symbols, *best)
            merged[symbols] = merged.get(symbols, 0) + count
        words = merged
    return merges


@dataclass(slots=True)
class Pieces:
    """A SentencePiece vocabulary: pieces with scores, and a token for each byte."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    ids: dict[str, int] = field(init=False)
    known: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.known = {}

    @classmethod
    def learn(cls, texts: Iterable[str], controls: Sequence[str], size: int) -> Pieces:
        """Learn a vocabulary of that size; the first control is `<unk>`, then `<s>` and `</s>`."""
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text.replace(" ", SPACE)))
        counts = Counter({word: count for word, count in counts.items() if count >= 4 and "\n" not in word})
        letters = sorted({letter for word in counts for letter in word})
        tokens = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        types = [UNKNOWN] + [CONTROL] * (len(controls) - 1) + [BYTE] * 256 + [NORMAL] * len(letters)
        scores = [0.0] * len(tokens)
        for left, right in learn_merges(counts, 10 * size, 0.75):
            if len(tokens) == size:
                break
            if left + right not in tokens:
                tokens.append(left + right)
                types.append(NORMAL)
                scores.append(-float(len(tokens)))
        return cls(tokens, scores, types)

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens; controls in the text are not recognised."""
        tokens: list[int] = []
        for piece in _PIECE.findall(text.replace(" ", SPACE)):
            if piece not in self.known:
                self.known[piece] = self._encode(piece)
            tokens += self.known[piece]
        return tokens

    def _encode(self, piece: str) -> list[int]:
        symbols = list(piece)
        while True:
            joined = [
                (self.scores[self.ids[left + right]], -at)
                for at, (left, right) in enumerate(pairwise(symbols))
                if left + right in self.ids
            ]
            if not joined:
                break
            at = -max(joined)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        tokens: list[int] = []
        for symbol in symbols:
            if symbol in self.ids:
                tokens.append(self.ids[symbol])
            else:
                tokens += [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return tokens


def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


@dataclass(slots=True)
class Bytes:
    """A byte-level BPE vocabulary; a word that is a token is taken whole, whatever the merges say."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    types: list[int]
    ids: dict[str, int] = field(init=False)
    known: dict[str, list[int]] = field(init=False)
    letters: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.known = {}
        self.letters = _byte_letters()

    @classmethod
    def learn(cls, texts: Iterable[str], controls: Sequence[str], size: int, merges: int) -> Bytes:
        """Learn a vocabulary of that size: bytes, that many merges, whole words, controls."""
        letters = _byte_letters()
        found = Counter(word for text in texts for word in _LLAMA3.findall(text))
        counts = {
            "".join(letters[byte] for byte in word.encode()): count
            for word, count in found.items()
            if count >= 4 and not word.isdigit()
        }
        learned = learn_merges(counts, merges, 0.5)
        tokens = list(dict.fromkeys([*letters.values(), *(left + right for left, right in learned)]))
        for word in sorted(counts, key=lambda word: (-counts[word], word)):
            if len(tokens) + len(controls) == size:
                break
            if word not in tokens:
                tokens.append(word)
        types = [NORMAL] * len(tokens) + [CONTROL] * len(controls)
        return cls([*tokens, *controls], learned, types)

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens; controls in the text are not recognised."""
        tokens: list[int] = []
        for word in _LLAMA3.findall(text):
            if word not in self.known:
                self.known[word] = self._encode("".join(self.letters[byte] for byte in word.encode()))
            tokens += self.known[word]
        return tokens

    def _encode(self, word: str) -> list[int]:
        if word in self.ids:
            return [self.ids[word]]
        symbols: Symbols = tuple(word)
        for left, right in self.merges:
            symbols = _merged(symbols, left, right)
        return [self.ids[symbol] for symbol in symbols]


@dataclass(slots=True)
class Words:
    """A WordPiece vocabulary in lower case: words, and letters and endings for words that are not in it."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    @classmethod
    def learn(cls, texts: Iterable[str], controls: Sequence[str], size: int) -> Words:
        """Learn a vocabulary of at most that size; the controls are BERT's, from `[PAD]` to `[MASK]`."""
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        endings = ("s", "es", "ed", "d", "ing", "er", "est", "ly", "ness", "ful", "less", "tion", "ment", "y")
        begun = [SPACE + letter for letter in letters + ".,!?'\"-:;()"]
        tokens = list(dict.fromkeys([*controls, *begun, *letters, *endings]))
        for word in sorted(counts, key=lambda word: (-counts[word], word)):
            if len(tokens) == size:
                break
            if SPACE + word not in tokens:
                tokens.append(SPACE + word)
        return cls(tokens, [CONTROL] * len(controls) + [NORMAL] * (len(tokens) - len(controls)))

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens between `[CLS]` and `[SEP]`."""
        tokens = [self.ids["[CLS]"]]
        for word in _WORD.findall(text.lower()):
            tokens += self._encode(SPACE + word)
        return [*tokens, self.ids["[SEP]"]]

    def _encode(self, word: str) -> list[int]:
        tokens, begin = [], 0
        while begin < len(word):
            end = next((end for end in range(len(word), begin, -1) if word[begin:end] in self.ids), None)
            if end is None:
                return [self.ids["[UNK]"]]
            tokens.append(self.ids[word[begin:end]])
            begin = end
        return tokens
