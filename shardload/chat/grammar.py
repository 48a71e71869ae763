"""Grammars that hold a model to JSON: llama.cpp's GBNF from a response format."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from shardload.chat.ambiguity import check_readings
from shardload.errors import RequestError, UnsupportedLlama

SCHEMA_LIMIT_BYTES = 64 * 1024
# llama.cpp makes a rule for each optional iteration, and refuses more than 2000 of them.
COUNT_LIMIT = 1000
COUNT_KEYS = frozenset({"minItems", "maxItems", "minLength", "maxLength"})
QUANTIFIER = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
# The converter lets raw control characters into strings, and JSON does not.
LOOSE_CHARACTER, CHARACTER = r'char ::= [^"\\] |', r'char ::= [^"\\\x7F\x00-\x1F] |'

JSON_OBJECT = r"""root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def response_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of an answer, ``{}`` for any JSON object, None for free text; raises RequestError."""
    param = "response_format"
    if response_format is None:
        return None
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            schema = response_format.get("schema", {})
        case "json_schema":
            inner = response_format.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
            if schema is None and isinstance(inner, Mapping):
                schema = {}  # the vendor's type has a name alone as well
            param = "response_format.json_schema.schema"
        case kind:
            raise RequestError(
                f"response_format.type must be text, json_object or json_schema, not {kind!r}", param=param
            )
    if not isinstance(schema, Mapping):
        raise RequestError(f"{param} must be an object", param=param)
    return schema


def schema_grammar(schema: Mapping[str, Any], *, param: str = "response_format") -> str:
    """GBNF for texts that fit a JSON schema, any object for ``{}``; raises RequestError for odd schemas."""
    if not schema:
        return JSON_OBJECT
    if "$ref" in schema:
        # The converter looks below a node or at its reference, never both, and the definitions are below.
        schema = {
            **{key: value for key, value in schema.items() if key != "$ref"},
            "anyOf": [{"$ref": schema["$ref"]}],
        }
    try:
        text = msgspec.json.encode(schema)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the schema is not JSON: {error}", param=param) from error
    except RecursionError as error:
        raise _too_deep(param) from error
    if len(text) > SCHEMA_LIMIT_BYTES:
        raise RequestError(
            f"the schema has {len(text)} bytes, at most {SCHEMA_LIMIT_BYTES} are taken", param=param
        )
    _check_counts(schema, param)
    grammar = _convert(text.decode(), param)
    check_readings(grammar, param=param)
    return grammar


def _check_counts(schema: Mapping[str, Any], param: str) -> None:
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            pending.extend(node.values())
            for key, count in _counts(node):
                if not 0 <= count <= COUNT_LIMIT:
                    raise RequestError(
                        f"{key} in the schema must be between 0 and {COUNT_LIMIT}, not {count}", param=param
                    )
        elif isinstance(node, list | tuple):
            pending.extend(node)


def _counts(node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key in COUNT_KEYS & node.keys():
        if isinstance(node[key], int):
            yield key, node[key]
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        for match in QUANTIFIER.finditer(pattern):
            yield from (("a repetition in pattern", int(number[:9])) for number in match.groups() if number)


def _convert(text: str, param: str) -> str:
    try:
        grammar = str(_converter().json_schema_to_gbnf(text))
    except RecursionError as error:
        raise _too_deep(param) from error
    except Exception as error:  # the converter raises whatever its own code runs into
        raise RequestError(f"the schema cannot be turned into a grammar: {error}", param=param) from error
    return grammar.replace(LOOSE_CHARACTER, CHARACTER)


def _too_deep(param: str) -> RequestError:
    return RequestError("the schema refers to itself in a circle, or is nested too deep", param=param)


@functools.cache
def _converter() -> ModuleType:
    # Its file alone: importing the package would load llama.cpp's libraries, which callers may do without.
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise UnsupportedLlama("llama-cpp-python is not installed, and its schema converter is needed")
    path = Path(package.origin).with_name("llama_grammar.py")
    spec = importlib.util.spec_from_file_location("shardload_llama_grammar", path)
    if spec is None or spec.loader is None:
        raise UnsupportedLlama(f"llama-cpp-python has no schema converter at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its own writes a repetition out term by term, nested in as many brackets, which llama.cpp would read by
    # recursion; and counts that are written as such are seen by who checks the grammar.
    vars(module)["_build_repetition"] = _repetition
    return module


def _repetition(
    item: str,
    least: int,
    most: int | None,
    separator_rule: str | None = None,
    item_rule_is_literal: bool = False,
) -> str:
    """An item of GBNF ``least`` to ``most`` times; the keywords are those of the converter."""
    if not separator_rule:
        bounds = f"{least}" if most == least else f"{least},{'' if most is None else most}"
        return f"({item}){{{bounds}}}"
    if most == 0:
        return ""
    more = _repetition(f"{separator_rule} {item}", max(0, least - 1), None if most is None else most - 1)
    return f"({item} {more})" + ("" if least else "?")
