"""Jinja for templates that nobody vouched for: they reach nothing but their arguments, and come to an end."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 0.25
"""Of the processor; short conversations are rendered on the event loop, and take a hundredth of that."""
SECONDS_PER_PART = 1e-3
SIZE_LIMIT = 2**26
"""Characters or elements of one value, and characters of all that is printed."""
NUMBER_LIMIT = 2**1024
WIDE = re.compile(r"%[^%a-zA-Z]*(\d{5}|\*)")
"""A place in a format of more than 9999 columns, or of as many as an argument says."""
COUNTED, JOINED = "shardload_counted", "shardload_joined"
PADDING = frozenset({"center", "indent", "wordwrap", "truncate", "batch", "slice"})


class _Budget:
    """What is left to one rendering; processor time is that of its thread."""

    __slots__ = ("_ends", "_printed")

    def __init__(self, seconds: float) -> None:
        self._ends = time.thread_time() + seconds
        self._printed = 0

    def step(self) -> None:
        if time.thread_time() > self._ends:
            raise TemplateRuntimeError("it takes too long")

    def print(self, value: Any) -> None:
        self.step()
        self._printed += _length(value)
        if self._printed > SIZE_LIMIT:
            raise TemplateRuntimeError("it prints too much")


_budget: ContextVar[_Budget] = ContextVar("budget")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates count each turn of a loop and each macro, and make no huge values.

    What they do too much of raises TemplateRuntimeError; they are for ``rendered`` only.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_printed, **options)
        self.filters[COUNTED], self.filters[JOINED] = _counted, _joined
        for name in PADDING:
            self.filters[name] = _narrow(FILTERS[name])
        self.filters["format"] = _format
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        parts: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
            *tree.find_all(nodes.For),
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
        ]
        for part in parts:
            step = _filter(nodes.Const(True), COUNTED, part.lineno)
            part.body.insert(0, nodes.ExprStmt(step, lineno=part.lineno))
            if isinstance(part, nodes.For) and part.test is not None:
                # What an `if` in the loop's head leaves out counts as well.
                part.test = nodes.And(step, part.test, lineno=part.lineno)
        _Joining().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_size(_length(left) * right if isinstance(right, int) else 0)
            _check_size(_length(right) * left if isinstance(left, int) else 0)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * right)
        elif operator == "+":
            _check_size(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > NUMBER_LIMIT:
            raise TemplateRuntimeError("a number is too large")
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.get().step()
        # Methods of texts and numbers make values as large as they are told; macros only pass them on.
        if isinstance(getattr(__obj, "__self__", None), str | bytes | int):
            _check_arguments(args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        _check_size(_length(result))
        return result


class _Joining(NodeTransformer):
    """Has the operator ``~`` done by a filter, which can refuse."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOINED, node.lineno)


def rendered(template: Template, variables: Mapping[str, Any], *, parts: int) -> str:
    """The text of a sandbox's template about so many messages and tools.

    Raises TemplateError, MemoryError, and whatever a template's expressions raise.
    """
    token = _budget.set(_Budget(SECONDS + SECONDS_PER_PART * parts))
    try:
        pieces = []
        for piece in template.generate(variables):
            _budget.get().print(piece)
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _budget.reset(token)


def _filter(value: nodes.Expr, name: str, lineno: int) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=lineno)


# Whoever takes the context is not called while the template is compiled.
@pass_context
def _counted(context: Context, value: Any) -> Any:
    _budget.get().step()
    return value


@pass_context
def _printed(context: Context, value: Any) -> Any:
    _budget.get().print(value)
    return value


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(args, kwargs)
        return function(*args, **kwargs)

    return narrow


def _format(value: Any, *args: Any, **kwargs: Any) -> Any:
    _check_format(str(value))
    return FILTERS["format"](value, *args, **kwargs)


def _check_format(text: str) -> None:
    if WIDE.search(text):
        raise TemplateRuntimeError("a format is too wide")


def _check_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int):
            _check_size(abs(value))


def _check_size(size: int) -> None:
    if size > SIZE_LIMIT:
        raise TemplateRuntimeError("a value is too large")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0
