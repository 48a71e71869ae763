from __future__ import annotations

import sys
from typing import Any

import pytest

from shardload.chat.grammar import JSON_OBJECT, response_schema, schema_grammar
from shardload.errors import RequestError


def test_a_schema_becomes_rules() -> None:
    grammar = schema_grammar(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name"],
        }
    )
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    assert rules["name-kv"] == r'"\"name\"" space ":" space string'
    assert "name-kv" in rules["root"]


@pytest.mark.parametrize("inner", [{"name": "any"}, {"name": "any", "schema": None}])
def test_a_format_without_a_schema_is_any_object(inner: dict[str, Any]) -> None:
    assert response_schema({"type": "json_schema", "json_schema": inner}) == {}


@pytest.mark.parametrize("fields", [{}, {"json_schema": None}, {"json_schema": {"schema": 3}}])
def test_a_format_whose_schema_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must be an object"):
        response_schema({"type": "json_schema", **fields})


def test_strings_hold_no_raw_control_characters() -> None:
    grammar = schema_grammar({"type": "string"})
    assert r'char ::= [^"\\\x7F\x00-\x1F] |' in grammar
    assert r'[^"\\\x7F\x00-\x1F]' in JSON_OBJECT


def test_definitions_that_refer_to_themselves() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    assert "node-next ::= node" in schema_grammar({"$defs": {"node": node}, "$ref": "#/$defs/node"})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "king"}, "Unrecognized schema"),
        ({"$ref": "#/$defs/nothing"}, "Error resolving ref"),
        ({"$ref": "https://example.com/schema.json"}, "remote schemas"),
        (
            {"type": "array", "items": {}, "minItems": 10**9},
            "minItems in the schema must be between 0 and 1000",
        ),
        ({"type": "string", "maxLength": 1001}, "maxLength"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "string", "pattern": "^a{3,999999999999999999}$"}, "a repetition in pattern"),
        ({"properties": {"a": 3}}, "cannot be turned"),
        ({"title": "x" * 70_000}, "70012 bytes"),
        ({"const": object()}, "not JSON"),
    ],
)
def test_schemas_that_cannot_be_held_to(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        schema_grammar(schema)
    assert words in str(caught.value)
    assert caught.value.param == "response_format"


def test_a_schema_nested_too_deep() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(sys.getrecursionlimit()):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested"):
        schema_grammar(schema)
