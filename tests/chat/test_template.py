from __future__ import annotations

from datetime import datetime

import pytest

from shardload.chat import sandbox
from shardload.chat.messages import Message
from shardload.chat.template import CHATML, PLAIN, ChatTemplate, template_source
from shardload.errors import ModelUnavailable, RequestError

ASKED = (Message("system", "Be kind."), Message("user", "Hi"))


def test_a_template_sees_messages_and_pieces() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    assert ChatTemplate(source, "<s>", "</s>").render(ASKED) == "<s>[system] Be kind.</s>[user] Hi</s>"


def test_blocks_are_trimmed_as_their_authors_expect() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }};\n    {% endif %}\n{% endfor %}"
    assert ChatTemplate(source).render(ASKED) == "Be kind.;\nHi;\n"


def test_loop_controls() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert ChatTemplate(source).render(ASKED) == "Be kind."


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate("{{ tools | tojson }}{{ tools | tojson(indent=1) }}")
    assert template.render(ASKED, tools=[{"a": "<é>"}]) == '[{"a": "<é>"}][\n {\n  "a": "<é>"\n }\n]'


def test_the_generation_prompt_and_extra_variables() -> None:
    template = ChatTemplate("{% if add_generation_prompt %}go{% endif %}{{ enable_thinking }}")
    assert template.render(ASKED, extra={"enable_thinking": False}) == "goFalse"
    assert template.render(ASKED, extra={"add_generation_prompt": False, "enable_thinking": 1}) == "1"


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "self", "extra"])
def test_extra_variables_never_take_the_place_of_the_conversation(name: str) -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ tools is none }}", "<s>")
    assert template.render(ASKED, extra={name: [3]}) == "<s>Be kind.True"


def test_what_marks_turns_for_training_prints_nothing() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }};{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source).render(ASKED) == "Be kind.;Hi;"


def test_no_tools_are_none() -> None:
    assert ChatTemplate("{{ tools is none }}").render(ASKED, tools=[]) == "True"


def test_the_date() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", clock=lambda: datetime(2026, 3, 1))
    assert template.render(ASKED) == "01 Mar 2026"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "too big"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
    ],
)
def test_what_a_template_refuses_is_the_requests_fault(source: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        ChatTemplate(source).render(ASKED)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
            "too long",
        ),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "refuses"),
        ("{{ 'a' * 200000000000 }}", "too large"),
        ("{{ 10 ** 10 * [1] }}", "too large"),
        ("{{ 10 ** (10 ** 10) }}", "too large"),
        (
            "{% set n = namespace(a='ab') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}",
            "too large",
        ),
        (
            "{% set n = namespace(a='ab') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
            "too large",
        ),
        (
            "{% set a = 'ab' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
            "too much",
        ),
        ("{{ 'a'.ljust(10 ** 10) }}", "too large"),
        ("{{ 'a' | center(10 ** 10) }}", "too large"),
        ("{{ '%10000000000d' % 1 }}", "too wide"),
        ("{{ '%10000000000d' | format(1) }}", "too wide"),
        ("{{ lipsum(10 ** 6) }}", "undefined"),
    ],
)
def test_a_template_that_does_too_much_ends(source: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    with pytest.raises(RequestError, match=words):
        ChatTemplate(source).render(ASKED)


def test_a_template_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(clock: object) -> datetime:
        raise MemoryError

    with pytest.raises(RequestError, match="refuses"):
        ChatTemplate("{{ strftime_now('%Y') }}", clock=lambda: full(None)).render(ASKED)


def test_what_templates_do_every_day_they_may_do() -> None:
    source = (
        "{% macro line(m, end) %}{{ '-' * 3 ~ m.role ~ 1 ~ none ~ end }}{% endmacro %}"
        "{% for m in messages if m.role == 'user' %}{{ line(m, '!') + '%s' % m.content }}{% endfor %}"
        "{{ 'a' | center(3) }}{{ '%d' | format(3) }}{% set x %}{{ 2 ** 3 }}{% endset %}{{ x }}"
    )
    assert ChatTemplate(source).render(ASKED) == "---user1None!Hi a 38"


def test_large_numbers_are_passed_on() -> None:
    source = (
        "{% macro argument(x) %}{{ x }}{% endmacro %}{{ argument(1700000000) }} {{ {}.get('a', 2 ** 40) }}"
    )
    assert ChatTemplate(source).render(ASKED) == "1700000000 1099511627776"
    for made in ("'a'.zfill(2 ** 40)", "'a'.ljust(2 ** 40)"):
        with pytest.raises(RequestError, match="too large"):
            ChatTemplate("{{ " + made + " }}").render(ASKED)


def test_a_long_conversation_is_rendered() -> None:
    asked = [Message("user", "word " * 20)] * 20_000
    assert len(ChatTemplate(CHATML).render(asked)) > 2_000_000


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(ModelUnavailable, match="template does not parse"):
        ChatTemplate("{% for %}")


def test_templates_that_look_at_tools() -> None:
    assert ChatTemplate("{% if tools %}{% endif %}").takes_tools
    assert not ChatTemplate(CHATML).takes_tools


def test_sources_without_a_template() -> None:
    assert template_source("own", knows_chatml=True) == "own"
    assert ChatTemplate(template_source(None, knows_chatml=True)).render(ASKED) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template_source("", knows_chatml=False) == PLAIN
    assert ChatTemplate(PLAIN).render(ASKED) == "Be kind.\nHi"
