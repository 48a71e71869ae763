from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from shardload.chat.ambiguity import check_readings
from shardload.chat.grammar import JSON_OBJECT, schema_grammar
from shardload.errors import RequestError

LETTER = "[a-zA-Z ,.]"


@pytest.mark.parametrize(
    "grammar",
    [
        f"root ::= a{{0,2000}}\na ::= b{{0,2000}}\nb ::= {LETTER}",
        f"b ::= {LETTER}\na ::= b{{1,100}}\nroot ::= a{{1,100}}",
        f"root ::= ({LETTER}?){{1000}}",
        "root ::= " + f"{LETTER}* " * 100,
        f'root ::= ({LETTER}* "b"){{0,1001}}',
        'root ::= ("\\"" [^a]{0,90} "\\""){0,90}',
    ],
)
def test_grammars_that_a_text_may_have_too_many_readings_by(grammar: str) -> None:
    with pytest.raises(RequestError, match="readings") as caught:
        check_readings(grammar, param="grammar")
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        JSON_OBJECT,
        f'root ::= "\\"" {LETTER}{{0,1000}} "\\""',
        'root ::= ("- " [a-z ]{1,1000} "\\n"){1,1000}',
        'root ::= ("[" [^\\]]{0,1000} "]"){0,1000} # a comment',
        f"root ::= a*\na ::= b*\nb ::= {LETTER}?",
        "root ::= root2 {",
        "root ::= " + "(" * 100 + '"x"' + ")" * 100,
    ],
)
def test_grammars_that_go_on(grammar: str) -> None:
    check_readings(grammar, param="grammar")


def test_rules_in_a_long_chain() -> None:
    names = ["root", *(f"r{number}" for number in range(3000))]
    lines = [f"{name} ::= {after}" for name, after in pairwise(names)] + ['r2999 ::= "x"']
    check_readings("\n".join(lines), param="grammar")
    check_readings("\n".join(reversed(lines)), param="grammar")


def test_a_grammar_nested_too_deep_for_a_look() -> None:
    with pytest.raises(RequestError, match="nested"):
        check_readings("root ::= " + "(" * 9000 + '"x"' + ")" * 9000, param="grammar")


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


@pytest.mark.parametrize(
    "schema",
    [
        text(f"^((({LETTER}{{0,20}}){{0,20}}){{0,20}}){{0,20}}$"),
        text("^(" + "[a-zA-Z ]?" * 90 + "){0,90}$"),
        {"type": "array", "items": text("^([a-z ]{0,90}){0,90}$")},
        # A quote inside of the string may be its end as well.
        {"type": "array", "maxItems": 90, "items": text("^[^a]{0,90}$")},
    ],
)
def test_schemas_that_a_text_may_have_too_many_readings_by(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="readings"):
        schema_grammar(schema)


ANSWER = {"type": "string", "maxLength": 1000}
OPTIONAL = {
    "type": "object",
    "properties": {f"p{number}": ANSWER for number in range(40)},
    "required": ["p3"],
}
BRANCH = {
    "type": "object",
    "properties": {"kids": {"type": "array", "maxItems": 100, "items": {"$ref": "#/$defs/node"}}},
    "required": ["kids"],
}


@pytest.mark.parametrize(
    "schema",
    [
        ANSWER,
        text("^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
        text(r"^[a-zA-Z0-9._%+-]{1,64}@[a-zA-Z0-9.-]{1,255}\.[a-zA-Z]{2,10}$"),
        text(r"^([a-z0-9-]{1,63}\.){1,10}[a-z]{2,63}$"),
        text("^[A-Za-z]+( [A-Za-z]+){0,20}$"),
        {"type": "array", "maxItems": 100, "items": OPTIONAL},
        {"type": "array", "maxItems": 100, "items": {"type": "array", "maxItems": 100, "items": ANSWER}},
        {"type": "array", "minItems": 2, "maxItems": 1000, "items": {"enum": ["a", "ab", 1, 12]}},
        {"$defs": {"node": {"anyOf": [OPTIONAL, BRANCH]}}, "$ref": "#/$defs/node"},
    ],
)
def test_schemas_of_every_day(schema: dict[str, Any]) -> None:
    assert "root ::=" in schema_grammar(schema)
