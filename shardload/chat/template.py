"""Chat templates: the Jinja text in a model's file that turns a conversation into its prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from shardload.chat.messages import Message
from shardload.chat.sandbox import Sandbox, rendered
from shardload.errors import ModelUnavailable, RequestError

# Files made before templates were stored in them are mostly tuned on ChatML: markers in the vocabulary tell.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Without template and without markers a model only continues text. Roles and markup would be text that it has
# never seen, so it gets what was said and nothing else.
PLAIN = "{{ messages | map(attribute='content') | join('\\n') }}"
REFUSALS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
    MemoryError,
)


class AssistantTurn(Extension):
    """``{% generation %}``: marks for training what the assistant says, and prints nothing itself."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template with the pieces it may print; rendering is pure and safe in any thread.

    The template comes from a file that nobody vouched for, so it runs in Jinja's sandbox without access to
    anything but its arguments, and ends where it takes too long or too much room.
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", *, clock: Callable[[], datetime] = datetime.now
    ) -> None:
        """Compile it; raises ModelUnavailable where the file's template is none that we can read."""
        self.source, self.bos, self.eos = source, bos, eos
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, AssistantTurn])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelUnavailable(f"the model's chat template does not parse: {error}") from error

    @property
    def takes_tools(self) -> bool:
        """Whether the template looks at the tools it is given."""
        return "tools" in self.source

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text up to where the model goes on; ``extra`` are variables of the template's own.

        Raises RequestError with the template's own words where it refuses.
        """
        variables: dict[str, Any] = {
            "add_generation_prompt": True,
            **(extra or {}),
            "messages": [message.for_template() for message in messages],
            "tools": list(tools) if tools else None,
            "bos_token": self.bos,
            "eos_token": self.eos,
        }
        try:
            return rendered(self._template, variables, parts=len(messages) + len(tools or ()))
        except REFUSALS as error:
            raise RequestError(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error


def template_source(own: str | None, *, knows_chatml: bool) -> str:
    """The template to use for a file that carries ``own``, or none."""
    if own:
        return own
    return CHATML if knows_chatml else PLAIN


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which models have not seen in training.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
