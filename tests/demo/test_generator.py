"""The grammars that the demo models learn from: same seed, same text, and every sentence a sentence."""

from __future__ import annotations

import re
from random import Random

import pytest
from dialogue import PEOPLE, Tale, article, capital, casual, conversation, off_topic
from fable import Fable
from fable_cast import HE, KINDS, SHE
from hypothesis import given
from hypothesis import strategies as st
from pirate import Pirate
from sentences import SCENES, pair
from vocabulary import Bytes, Pieces, Words, learn_merges

VOICES = (Fable(), Pirate())
seeds = st.integers(0, 2**32)
voices = st.sampled_from(VOICES)


def assert_grammatical(text: str) -> None:
    """Check what a reader notices first: capitals, final marks, articles, doubled words and spaces."""
    assert text[0].isupper(), text
    assert text[-1] in '.!?"', text
    assert "  " not in text, text
    assert "{" not in text, text
    assert not re.search(r"\b[Aa] [aeiou]", text), text
    assert not re.search(r"\b[Aa]n [^aeiou]", text), text
    assert not re.search(r"\b(\w+) \1\b", text.replace("ho ho", "ho")), text
    for sentence in re.split(r'(?<=[.!?])"? ', text):
        assert sentence.lstrip('"')[0].isupper() or sentence.startswith("said"), text


@given(seeds, voices)
def test_tales_are_grammatical_and_answer_their_questions(seed: int, voice: Fable | Pirate) -> None:
    tale = voice.tale(Random(seed))
    assert_grammatical(tale.text)
    assert len(tale.text.split()) < 110
    assert len(tale.questions) >= 5
    for question, answer in tale.questions:
        assert question.endswith("?")
        assert_grammatical(question)
        assert_grammatical(answer)


@given(seeds)
def test_a_fable_names_two_animals_and_keeps_their_pronouns(seed: int) -> None:
    text = Fable().tale(Random(seed)).text
    named = {name for name in HE + SHE if re.search(rf"\b{name}\b", text)}
    assert len(named) == 2
    pronouns = {
        word for word in re.findall(r"[A-Za-z]+", text) if word.lower() in ("he", "she", "his", "her")
    }
    if named <= set(HE):
        assert not {word for word in pronouns if word.lower() in ("she", "her")}
    if named <= set(SHE):
        assert not {word for word in pronouns if word.lower() in ("he", "his")}


@given(seeds)
def test_a_wish_for_an_animal_is_granted(seed: int) -> None:
    wish, _, tale = Fable().request(Random(seed))
    wished = [kind for kind in KINDS if re.search(rf"\b{kind}\b", wish)]
    for kind in wished:
        assert re.search(rf"\b{kind}\b", tale.text)


@given(seeds, voices)
def test_conversations_alternate_and_end_with_an_answer(seed: int, voice: Fable | Pirate) -> None:
    turns = conversation(Random(seed), voice)
    spoken = [turn for turn in turns if turn.role != "system"]
    assert [turn.role for turn in turns].count("system") <= 1
    assert [turn.role for turn in spoken] == ["user", "assistant"] * (len(spoken) // 2)
    for turn in spoken[1::2]:
        assert_grammatical(turn.text)


@pytest.mark.parametrize("voice", VOICES, ids=("fable", "pirate"))
def test_the_same_seed_gives_the_same_text(voice: Fable | Pirate) -> None:
    first, again, other = (
        [conversation(random, voice) for _ in range(50)] for random in (Random(7), Random(7), Random(8))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("voice", VOICES, ids=("fable", "pirate"))
def test_one_seed_tells_many_tales(voice: Fable | Pirate) -> None:
    random = Random(3)
    assert len({voice.tale(random).text for _ in range(500)}) > 490


def test_voices_share_no_answer_to_a_greeting() -> None:
    fable, pirate = ({answer for remark in voice.remarks for answer in remark.answers} for voice in VOICES)
    assert fable.isdisjoint(pirate)


@given(seeds)
def test_what_nobody_knows_has_words(seed: int) -> None:
    text = off_topic(Random(seed))
    assert text.strip()
    assert "{" not in text
    assert casual(Random(seed), text)


@given(seeds)
def test_pairs_are_sentences(seed: int) -> None:
    one = pair(Random(seed))
    for text in (one.left, one.right):
        assert text
        assert "{" not in text
        assert not re.search(r"\b[Aa] [aeiou]", text)


def test_every_scene_can_be_said_in_two_ways() -> None:
    assert all(len(set(phrasings)) > 1 for phrasings in SCENES)


def test_small_words() -> None:
    assert article("owl") == "an owl"
    assert article("fox") == "a fox"
    assert capital("a fox") == "A fox"
    assert len(set(PEOPLE)) == len(PEOPLE)
    assert not set(PEOPLE) & set(HE + SHE)
    assert Tale("", ()).questions == ()


def test_merges_join_the_commonest_pair_first() -> None:
    assert learn_merges({"aab": 9, "ab": 1}, 1, 0.5) == [("a", "b")]
    assert learn_merges({"abc": 4}, 9, 0.5) == [("b", "c"), ("a", "bc")]


TEXTS = ("The fox ran home. The fox ran far.",) * 5


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_pieces_and_bytes_lose_nothing(text: str) -> None:
    text = text.replace("\u2581", " ")
    pieces = Pieces.learn(TEXTS, ("<unk>", "<s>", "</s>"), 300)
    spelt = b""
    for token in pieces.encode(text):
        name = pieces.tokens[token]
        spelt += (
            bytes([int(name[3:5], 16)]) if pieces.types[token] == 6 else name.replace("\u2581", " ").encode()
        )
    assert spelt.decode() == text
    raw = Bytes.learn(TEXTS, ("<end>",), 300, 10)
    bytes_of = {letter: byte for byte, letter in raw.letters.items()}
    assert (
        bytes(bytes_of[letter] for token in raw.encode(text) for letter in raw.tokens[token]).decode() == text
    )


def test_words_fall_back_to_letters_and_to_unknown() -> None:
    words = Words.learn(TEXTS, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), 200)
    spelt = [words.tokens[token] for token in words.encode("The foxes 世")]
    assert spelt == ["[CLS]", "\u2581the", "\u2581fox", "es", "[UNK]", "[SEP]"]
