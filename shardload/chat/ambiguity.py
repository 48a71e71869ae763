"""How many readings of one text a GBNF grammar may keep llama.cpp busy with, before it is given to it.

llama.cpp follows all readings side by side, and compares each with all others at every character: a nest of
repetitions whose iterations cannot be told apart costs the square of the product of their counts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from shardload.errors import RequestError

READINGS_LIMIT = 2000
CHARACTERS_LIMIT = 2**17
"""Longer grammars are refused by the sampler anyway."""
MANY = 10**9
ROUNDS = 20

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<name>[A-Za-z0-9_-]+)(?P<rule>\s*::=)?|"(?P<text>(?:\\.|[^"\\])*)"
    |\[(?P<set>(?:\\.|[^\]\\])*)\]|(?P<token>!?<[^>\n]*>)|\{(?P<least>\d+)\s*(?P<comma>,)?\s*(?P<most>\d*)\}
    |(?P<mark>[|()*+?.])""",
    re.VERBOSE | re.DOTALL,
)
CHARACTER = re.compile(
    r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.VERBOSE | re.DOTALL
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
ALL = ((0, 0xFFFFFFFF),)
Span = tuple[int, int]


@dataclass(slots=True, eq=False)
class Node:
    """A part of a grammar: characters, a rule's name, a sequence, alternatives or a repetition."""

    kind: str
    parts: list[Node]
    spans: tuple[Span, ...] = ()
    name: str = ""
    least: int = 1
    most: int | None = 1
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a part; sets of characters are bits, one for each span of the grammar."""

    nullable: bool = False
    first: int = 0
    onward: int = 0
    """The characters that may go on inside of it where it could have ended."""
    size: int = 0
    """The places in it, its repetitions written out."""
    readings: int = 1
    """The most places of it that one text may be at."""


def check_readings(grammar: str, *, param: str) -> None:
    """Raise RequestError for a grammar that a text may have more than READINGS_LIMIT readings by.

    Readings are those of repetitions in one another and beside one another; texts that are no grammar are
    left to llama.cpp, which says more about what is wrong with them.
    """
    if len(grammar) > CHARACTERS_LIMIT:
        return
    try:
        rules = _Reader(grammar).rules
        readings = _readings(rules)
    except _NoGrammar:
        return
    except RecursionError as error:
        raise RequestError("the grammar is nested too deep", param=param) from error
    if readings > READINGS_LIMIT:
        raise RequestError(
            f"a text may have {'very many' if readings >= MANY else readings} readings by the grammar, and "
            f"{READINGS_LIMIT} are the most: repetitions in one another must be told apart by their text",
            param=param,
        )


class _NoGrammar(Exception):
    pass


class _Reader:
    """Reads GBNF; ``rules`` are its rules by name."""

    def __init__(self, grammar: str) -> None:
        self.rules: dict[str, Node] = {}
        self._tokens = _tokens(grammar)
        self._token = next(self._tokens, None)
        while self._token is not None:
            if not self._token["rule"]:
                raise _NoGrammar
            name = self._token["name"]
            self._advance()
            self.rules[name] = self._alternatives()

    def _advance(self) -> None:
        self._token = next(self._tokens, None)

    def _alternatives(self) -> Node:
        node = Node("alternatives", [self._sequence()])
        while self._token is not None and self._token["mark"] == "|":
            self._advance()
            node.parts.append(self._sequence())
        return node

    def _sequence(self) -> Node:
        node = Node("sequence", [])
        while (token := self._token) is not None and not token["rule"] and token["mark"] not in ("|", ")"):
            if token["least"] is not None or token["mark"] in ("*", "+", "?"):
                self._repeat(node, token)
            elif token["text"] is not None:
                # A sequence of its own: a repetition that follows is of the whole literal.
                codes = [Node("characters", [], ((code, code),)) for code in _codes(token["text"])]
                node.parts.append(Node("sequence", codes))
            elif token["mark"] == "(":
                self._advance()
                node.parts.append(self._alternatives())
                if self._token is None or self._token["mark"] != ")":
                    raise _NoGrammar
            else:
                node.parts.append(_leaf(token))
            self._advance()
        return node

    def _repeat(self, sequence: Node, token: re.Match[str]) -> None:
        if not sequence.parts:
            raise _NoGrammar
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(token["mark"], (0, 0))
        if token["least"] is not None:
            least = int(token["least"][:9])
            most = least if not token["comma"] else int(token["most"][:9]) if token["most"] else None
        sequence.parts.append(Node("repetition", [sequence.parts.pop()], least=least, most=most))


def _tokens(grammar: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(grammar):
        token = TOKEN.match(grammar, at)
        if token is None:
            raise _NoGrammar
        at = token.end()
        if token["space"] is None:
            yield token


def _codes(text: str) -> list[int]:
    codes = []
    for match in CHARACTER.finditer(text):
        number = match[1] or match[2] or match[3]
        codes.append(int(number, 16) if number else ord(ESCAPES.get(match[4], match[4]) or match[5]))
    return codes


def _leaf(token: re.Match[str]) -> Node:
    if token["name"]:
        return Node("rule", [], name=token["name"])
    if token["set"] is None:
        return Node("characters", [], ALL)
    text = token["set"]
    codes, spans = _codes(text.removeprefix("^")), []
    dashes = [match[5] == "-" for match in CHARACTER.finditer(text.removeprefix("^"))]
    at = 0
    while at < len(codes):
        is_range = at + 2 < len(codes) and dashes[at + 1]
        spans.append((codes[at], max(codes[at], codes[at + 2])) if is_range else (codes[at], codes[at]))
        at += 3 if is_range else 1
    if not text.startswith("^"):
        return Node("characters", [], tuple(spans))
    edges = [(-1, -1), *sorted(spans), (0xFFFFFFFF, 0xFFFFFFFF)]
    gaps, end = [], -1
    for (_, last), (start, _) in pairwise(edges):
        end = max(end, last)
        if start > end + 1:
            gaps.append((end + 1, start - 1))
    return Node("characters", [], tuple(gaps))


def _readings(rules: dict[str, Node]) -> int:
    _number(rules)
    shapes = dict.fromkeys(rules, Shape())
    # Rules mostly use those below them, or all those above: each direction is right for one kind.
    order = list(rules)
    for _ in range(ROUNDS):
        order.reverse()
        changed = False
        for name in order:
            shape, old = _shape(rules[name], shapes), shapes[name]
            shapes[name] = shape
            # Sizes of rules that refer to themselves have no end: what they repeat counts, not how deep.
            changed |= replace(shape, size=0) != replace(old, size=0)
        if not changed:
            return max((shape.readings for shape in shapes.values()), default=1)
    return MANY


def _number(rules: dict[str, Node]) -> None:
    """Give each span of characters its bit, and each set its mask."""
    leaves, pending = [], list(rules.values())
    while pending:
        node = pending.pop()
        pending.extend(node.parts)
        if node.kind == "characters":
            leaves.append(node)
    places = {
        edge: bit
        for bit, edge in enumerate(sorted({e for n in leaves for a, b in n.spans for e in (a, b + 1)}))
    }

    @functools.cache
    def mask(spans: tuple[Span, ...]) -> int:
        bits = 0
        for start, end in spans:
            bits |= (1 << places[end + 1]) - (1 << places[start])
        return bits

    for node in leaves:
        node.mask = mask(node.spans)


def _shape(node: Node, shapes: dict[str, Shape]) -> Shape:
    match node.kind:
        case "characters":
            return Shape(first=node.mask, size=1)
        case "rule":
            return shapes.get(node.name, Shape())
        case "alternatives":
            return _of_alternatives([_shape(part, shapes) for part in node.parts])
        case "sequence":
            return _of_sequence(node, [_shape(part, shapes) for part in node.parts])
    return _of_repetition(node, _shape(node.parts[0], shapes))


def _of_alternatives(parts: list[Shape]) -> Shape:
    first = onward = 0
    for part in parts:
        first, onward = first | part.first, onward | part.onward
    nullable = any(part.nullable for part in parts)
    return Shape(
        nullable,
        first,
        onward | (first if nullable else 0),
        min(MANY, sum(part.size for part in parts)),
        max(part.readings for part in parts),
    )


def _of_sequence(node: Node, parts: list[Shape]) -> Shape:
    nullable, first, onward, readings = True, 0, 0, 1
    row, counts = 0, 0
    for child, part in zip(node.parts, parts, strict=True):
        overlaps = bool(onward & part.first)
        # Optional parts beside one another that may match the same text.
        row, counts = (row, counts) if overlaps else (0, 0)
        if part.nullable:
            row += 1
            counts += child.most or 1
        readings = max(readings, part.readings, row * counts if row > 1 else 1)
        # What has not ended where the next part began may go on beside it.
        onward = part.onward | (part.first | onward if part.nullable else onward if overlaps else 0)
        first |= part.first if nullable else 0
        nullable &= part.nullable
    return Shape(nullable, first, onward, min(MANY, sum(part.size for part in parts)), readings)


def _of_repetition(node: Node, part: Shape) -> Shape:
    count = node.least + 1 if node.most is None else node.most
    readings = part.readings
    if count > 1 and (part.nullable or part.onward & part.first):
        # Where an iteration may be empty, each comes to the same place by all that are left.
        readings = max(readings, count * part.size * (count if part.nullable else 1))
    fixed = node.least == node.most and not part.nullable
    return Shape(
        part.nullable or node.least == 0,
        part.first,
        part.onward | (0 if fixed else part.first),
        min(MANY, max(1, count) * part.size),
        min(MANY, readings),
    )
