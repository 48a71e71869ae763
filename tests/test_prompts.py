from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from fakes import BEGIN, FakeVocab
from service_fakes import make_entry

from shardload.chat.messages import ImagePart, Message
from shardload.chat.template import ChatTemplate
from shardload.errors import RequestError
from shardload.prompts import chat_tokens, completion_tokens, embedding_tokens
from shardload.requests import ChatRequest


class SpecialVocab(FakeVocab):
    """Reads the begin token, and ChatML's, where they are written out."""

    specials: ClassVar[dict[str, int]] = {"<begin>": BEGIN}

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        tokens = [BEGIN] if add_special else []
        while text:
            for piece, token in self.specials.items():
                if parse_special and text.startswith(piece):
                    tokens.append(token)
                    text = text.removeprefix(piece)
                    break
            else:
                tokens += text[0].encode()
                text = text[1:]
        return tokens


class ChatMLVocab(SpecialVocab):
    specials: ClassVar[dict[str, int]] = {**SpecialVocab.specials, "<|im_start|>": 1, "<|im_end|>": 2}


class BareVocab(FakeVocab):
    bos = -1

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode())


ASKED = (Message("user", "Hi"),)


@pytest.fixture
def chat() -> Callable[..., list[int]]:
    def render(vocab: FakeVocab, template: str | None, messages: Any = ASKED, **changes: Any) -> list[int]:
        request = ChatRequest("m", messages, tools=changes.pop("tools", ()))
        entry = make_entry("m", chat_template=template, **changes)
        return chat_tokens(request, entry, vocab, functools.partial(ChatTemplate))

    return render


def text(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode()


def test_the_begin_token_is_never_doubled(chat: Callable[..., list[int]]) -> None:
    printed = chat(SpecialVocab(), "{{ bos_token }}{{ messages[0].content }}")
    left_out = chat(SpecialVocab(), "{{ messages[0].content }}")
    assert printed == left_out == [BEGIN, *b"Hi"]


def test_a_model_without_a_template_gets_the_words_alone(chat: Callable[..., list[int]]) -> None:
    assert chat(SpecialVocab(), None, (*ASKED, Message("assistant", "Ho"))) == [BEGIN, *b"Hi\nHo"]


def test_a_vocabulary_with_chatml_is_chatted_with_so(chat: Callable[..., list[int]]) -> None:
    assert chat(ChatMLVocab(), None) == [BEGIN, 1, *b"user\nHi", 2, *b"\n", 1, *b"assistant\n"]


def test_the_system_text_of_a_virtual_model(chat: Callable[..., list[int]]) -> None:
    template = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    assert text(chat(FakeVocab(), template, system="Be kind.")) == "[system:Be kind.][user:Hi]"
    own = (Message("system", "Be brief."), *ASKED)
    assert text(chat(FakeVocab(), template, own, system="Be kind.")) == "[system:Be brief.][user:Hi]"


def test_a_system_text_for_a_model_without_the_role(chat: Callable[..., list[int]]) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' or m.content == 'No' %}"
        "{{ raise_exception(m.content + ' is refused') }}{% endif %}"
        "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    assert text(chat(FakeVocab(), template, system="Be kind.")) == "[user:Be kind.\n\nHi]"
    own = (Message("system", "Be brief."), *ASKED, Message("assistant", "Ho"))
    assert text(chat(FakeVocab(), template, own)) == "[user:Be brief.\n\nHi][assistant:Ho]"
    with pytest.raises(RequestError, match=r"Be kind\. is refused"):
        chat(FakeVocab(), template, (*ASKED, Message("assistant", "No")), system="Be kind.")


def test_images_and_tools_need_a_model_for_them(chat: Callable[..., list[int]]) -> None:
    with pytest.raises(RequestError, match="'m' does not take images"):
        chat(FakeVocab(), None, (Message("user", (ImagePart("http://a/b"),)),))
    with pytest.raises(RequestError, match="'m' does not take tools"):
        chat(FakeVocab(), None, tools=({"type": "function"},))
    assert text(chat(FakeVocab(), "{{ tools[0].type }}", tools=({"type": "function"},))) == "function"


def test_prompts_as_text_and_tokens() -> None:
    assert completion_tokens("Hi", FakeVocab()) == [BEGIN, *b"Hi"]
    assert completion_tokens((72, 105), FakeVocab()) == [72, 105]
    assert embedding_tokens("Hi", FakeVocab()) == [BEGIN, *b"Hi"]
    assert embedding_tokens([72], FakeVocab()) == [72]


def test_an_empty_prompt_begins_with_the_begin_token() -> None:
    class Reticent(FakeVocab):
        def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
            return []

    assert completion_tokens("", Reticent()) == [BEGIN]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "prompt is empty"),
        ("", "prompt is empty"),
    ],
)
def test_prompts_that_cannot_be(prompt: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        completion_tokens(prompt, BareVocab())
    assert caught.value.param == "prompt"


def test_nothing_to_embed() -> None:
    with pytest.raises(RequestError, match="input is empty"):
        embedding_tokens("", BareVocab())
