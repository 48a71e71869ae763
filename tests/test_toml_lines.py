from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardload.toml_lines import KeyPath, key_lines

TEXT = '''\
top = 1
[a."b.c"]  # a comment = here
x.y = 2
text = """
[not.a.table]
no = "key" \\"""
"""
raw = \'\'\'
# none = 1
\'\'\'
list = [
    1, "]",  # ]
    { k = [2,
      3] },
]

[[rows]]
n = 1
[rows.sub]
deep = 1
[[rows]]
n = 2
[[rows.cells]]
v = 1
[[rows.cells]]
v = 2
'quoted key' = { a = 1979-05-27T07:32:00Z, b = -0.5e3, "c d" = true }
'''


def test_lines() -> None:
    lines = key_lines(TEXT)
    expected: dict[KeyPath, int] = {
        ("top",): 1,
        ("a", "b.c"): 2,
        ("a", "b.c", "x", "y"): 3,
        ("a", "b.c", "text"): 4,
        ("a", "b.c", "raw"): 8,
        ("a", "b.c", "list", 1): 12,
        ("a", "b.c", "list", 2, "k", 1): 14,
        ("rows", 0): 17,
        ("rows", 0, "n"): 18,
        ("rows", 0, "sub", "deep"): 20,
        ("rows", 1): 21,
        ("rows", 1, "n"): 22,
        ("rows", 1, "cells", 0, "v"): 24,
        ("rows", 1, "cells", 1, "v"): 26,
        ("rows", 1, "cells", 1, "quoted key", "c d"): 27,
    }
    assert {keys: lines.get(keys) for keys in expected} == expected


def paths(value: Any, where: KeyPath = ()) -> set[KeyPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {keys for key, child in items for keys in ({(*where, key)} | paths(child, (*where, key)))}


def test_every_key_has_a_line() -> None:
    assert set(key_lines(TEXT)) == paths(tomllib.loads(TEXT))


def test_windows_line_ends() -> None:
    assert key_lines("a = 1\r\n[b]\r\nc = 2\r\n")[("b", "c")] == 3


@given(st.text("[]{}=.,\"'#\n ab1-", max_size=40))
def test_same_keys_as_tomllib(text: str) -> None:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert paths(raw) <= set(key_lines(text))
