from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import CONTROL, NORMAL, sentence_piece, write_bert, write_llama

from shardload.errors import UnencodableText
from shardload.llama import Model


@pytest.fixture(scope="module")
def without_bytes(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    tokens = sentence_piece(byte_tokens=False, special=("<|user|>", "<|end|>"))
    path = write_llama(tmp_path_factory.mktemp("models") / "letters.gguf", tokens=tokens)
    with Model.open([path]) as model:
        yield model.vocab


def test_text_goes_round(model: Model) -> None:
    vocab = model.vocab
    assert vocab.alphabet.has_all_bytes
    assert vocab.add_bos
    tokens = vocab.tokenize("the end, ünïcode 🙂\n")
    assert tokens[0] == vocab.bos == 1
    assert vocab.tokenize("the end", add_special=False) == vocab.tokenize("the end")[1:]
    assert b"".join(map(vocab.piece, tokens)).decode() == " the end, ünïcode 🙂\n"
    assert vocab.detokenize(tokens[1:]) == "the end, ünïcode 🙂\n"
    assert vocab.tokenize("") == [vocab.bos]
    assert vocab.tokenize("", add_special=False) == []


def test_long_text(model: Model) -> None:
    text = "the end and " * 5000
    assert model.vocab.detokenize(model.vocab.tokenize(text, add_special=False)) == text


def test_control_tokens(model: Model) -> None:
    vocab = model.vocab
    assert vocab.tokenize("</s>", add_special=False, parse_special=True) == [vocab.eos]
    assert vocab.tokenize("</s>", add_special=False) != [vocab.eos]
    assert vocab.piece(vocab.eos) == b""
    assert vocab.piece(vocab.eos, special=True) == b"</s>"
    assert vocab.is_end(vocab.eos)
    assert not vocab.is_end(vocab.bos)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_outside_the_vocabulary_are_refused(model: Model, token: int) -> None:
    with pytest.raises(UnencodableText, match="not in the vocabulary"):
        model.vocab.piece(token)
    with pytest.raises(UnencodableText, match="not in the vocabulary"):
        model.vocab.detokenize([1, token])
    assert not model.vocab.is_end(token)


def test_half_a_surrogate_pair_is_refused(model: Model) -> None:
    with pytest.raises(UnencodableText, match="surrogate"):
        model.vocab.tokenize("a\ud800")


def test_text_that_cannot_be_encoded_is_refused(without_bytes) -> None:  # type: ignore[no-untyped-def]
    assert not without_bytes.alphabet.has_all_bytes
    assert without_bytes.detokenize(without_bytes.tokenize("the cat")[1:]) == "the cat"
    for text, offender in (("the Ünit", "Ü"), ("a\nb", "\\n"), ("日本", "日"), ("x\0", "\\x00")):
        with pytest.raises(UnencodableText) as caught:
            without_bytes.tokenize(text)
        assert offender in str(caught.value)


def test_special_tokens_need_no_letters(without_bytes) -> None:  # type: ignore[no-untyped-def]
    tokens = without_bytes.tokenize("<|user|>the cat<|end|>", parse_special=True)
    assert tokens[1] == 3
    assert tokens[-1] == 4
    with pytest.raises(UnencodableText):
        without_bytes.tokenize("<|user|>the cat<|end|>")


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40), parse_special=st.booleans())
def test_any_text_is_encoded_or_refused(without_bytes, text: str, parse_special: bool) -> None:  # type: ignore[no-untyped-def]
    try:
        tokens = without_bytes.tokenize(text, add_special=False, parse_special=parse_special)
    except UnencodableText:
        return
    text = text.replace("\u2581", " ")  # the sign by which such vocabularies write a blank
    assert b"".join(without_bytes.piece(token) for token in tokens).decode() in (text, " " + text)


def test_missing_begin_token_is_not_asked_for(tmp_path: Path) -> None:
    # A vocabulary of no control tokens whose file says that a begin token is added.
    tokens = [(text, score, NORMAL if kind == CONTROL else kind) for text, score, kind in sentence_piece()]
    path = write_llama(tmp_path / "m.gguf", tokens=tokens, add_bos=False)
    with Model.open([path]) as model:
        assert not model.vocab.add_bos
        assert model.vocab.tokenize("the") == model.vocab.tokenize("the", add_special=False)


def test_word_pieces(tmp_path: Path) -> None:
    with Model.open([write_bert(tmp_path / "bert.gguf")]) as model:
        assert model.vocab.tokenize("The dog ran.") == [2, 4, 5, 7, 8, 3]
        assert model.vocab.tokenize("Ω") == [2, 1, 3]


def test_words_that_are_too_long_for_the_stack(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "pairs.gguf", splitting="deepseek-llm", add_bos=False)
    with Model.open([path]) as model:
        vocab = model.vocab
        assert vocab.detokenize(vocab.tokenize("the é thé")) == "the é thé"
        for letter in ("a", "!", " ", "1"):
            assert len(vocab.tokenize(letter * 120_000)) == 120_000
        with pytest.raises(UnencodableText, match="300000 characters without a blank"):
            vocab.tokenize("a" * 300_000)
        assert len(vocab.tokenize("the end, " * 50_000)) == 7 * 50_000


def test_reading_from_many_threads(model: Model) -> None:
    texts = [f"the end of {'and ' * number}" for number in range(64)]
    expected = [model.vocab.tokenize(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(model.vocab.tokenize, texts * 4)) == expected * 4


@pytest.mark.parametrize("add_special", [True, False])
@pytest.mark.parametrize("between", ["a", " b ", "", "\n", "one two  three"])
def test_parts_of_a_long_text_have_its_tokens(model: Model, between: str, add_special: bool) -> None:
    vocab = model.vocab
    control = vocab.piece(vocab.eos, special=True).decode()
    content = "begin " + (control + between) * 3000
    whole = vocab._tokenize(content, add_special, True)
    assert vocab.tokenize(content, add_special=add_special, parse_special=True) == whole
    assert whole.count(vocab.eos) >= 3000
