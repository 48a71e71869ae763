"""Where each key of a TOML document stands, which tomllib does not tell."""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' r"|'''(?:(?!''').)*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map each key path of a valid TOML document to its line, counted from 1; arrays count from 0."""
    return _KeyScanner(text.replace("\r\n", "\n")).scan()


class _KeyScanner:
    """Walks text that tomllib has accepted, and so need not check any of it."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._line, self._counted = 1, 0
        self._lines: dict[KeyPath, int] = {}
        self._array_lengths: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip_blank():
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _skip_blank(self) -> bool:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at < len(self._text)

    def _note(self, keys: KeyPath) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(keys, self._line)

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        keys = self._key(())
        self._at = self._text.index("]", self._at) + (2 if is_array else 1)
        if is_array:
            index = self._array_lengths.get(keys, 0)
            self._array_lengths[keys] = index + 1
            keys = (*keys, index)
            self._note(keys)
        return keys

    def _key(self, table: KeyPath) -> KeyPath:
        """Read a dotted key; a step through an array of tables goes through its last element."""
        keys = table
        while True:
            self._skip_blank()
            if keys in self._array_lengths:
                keys = (*keys, self._array_lengths[keys] - 1)
            quoted = _STRING.match(self._text, self._at)
            found = quoted or _BARE.match(self._text, self._at)
            if found is None:
                return keys
            name = next(iter(tomllib.loads(f"{found[0]} = 0"))) if quoted else found[0]
            keys = (*keys, name)
            self._note(keys)
            self._at = found.end()
            self._skip_blank()
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _pair(self, table: KeyPath) -> None:
        keys = self._key(table)
        self._at = self._text.index("=", self._at) + 1
        self._value(keys)

    def _value(self, keys: KeyPath) -> None:
        self._skip_blank()
        opening = self._text[self._at]
        if opening not in "[{":
            found = _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at)
            self._at = found.end() if found else len(self._text)
            return
        self._at += 1
        index = 0
        while self._skip_blank() and self._text[self._at] not in "]}":
            if self._text[self._at] == ",":
                self._at += 1
            elif opening == "{":
                self._pair(keys)
            else:
                self._note((*keys, index))
                self._value((*keys, index))
                index += 1
        self._at += 1
