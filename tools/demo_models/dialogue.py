"""Turns, tales and conversations: what both voices share.

A voice (`fable`, `pirate`) knows how to tell a tale with questions about it, and what to say to each kind of
remark. This module strings such pieces into conversations, and knows the things people type that no voice
knows. Everything is a function of the random generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks (`system`, `user` or `assistant`) and what."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Tale:
    """A story, and pairs of a question about it and its answer."""

    text: str
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Remark:
    """Ways to say one thing, and ways to answer it."""

    said: tuple[str, ...]
    answers: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list that is written as one text."""
    return tuple(text.split())


class Voice(Protocol):
    """What a conversation needs of a voice."""

    remarks: Sequence[Remark]
    unknown: Sequence[str]
    numbers: Sequence[str]
    systems: Sequence[str]
    greetings: Sequence[str]
    introductions: Sequence[str]
    reminders: Sequence[str]
    strangers: Sequence[str]

    def tale(self, random: Random) -> Tale:
        """Make up a tale."""

    def request(self, random: Random) -> tuple[str, str, Tale]:
        """Make up a wish for a tale, what is said before the tale, and the tale that grants it."""


PEOPLE = words(
    "Anna Peter Maria John Emma David Laura Paul Sara Tom Julia Mark Alice Bob Eva Simon Kate James "
    "Mary Adam Clara Martin Helen Lucas Sophie Daniel Nina Robert Jane Chris Alex Mike Lisa Andrew "
    "Zoe Victor"
)

_OPENERS = (
    "What is {}?",
    "What's {}?",
    "What is the {}?",
    "Who is the {}?",
    "Where is {}?",
    "How do I {} a {}?",
    "How does {} work?",
    "Explain {} to me.",
    "Explain the {} of {}.",
    "Write a {} about {}.",
    "Write {} in {}.",
    "What is the {} of {}?",
    "What is the capital of {}?",
    "Why is the {} {}?",
    "When was {} {}?",
    "Can you {} my {}?",
    "Translate {} into {}.",
    "Give me a {} for {}.",
    "Summarize the {}.",
    "I need {} for my {}.",
    "Do you know {}?",
    "Which {} is the best {}?",
    "Should I {} the {}?",
    "Please {} the {}.",
    "List the {} of {}.",
    "Who wrote {}?",
    "Is {} better than {}?",
    "{} {} {}",
    "{} {}",
    "{}",
)
_WORDS = words(
    "python code function computer phone internet email server memory network program car engine "
    "airplane train bicycle money bank price tax market job office boss meeting contract government "
    "president law country city France Germany China India America London Paris Tokyo Europe history "
    "war science physics chemistry gravity quantum energy planet Mars moon star universe atom doctor "
    "medicine health vaccine hospital exercise weight diet recipe pizza pasta coffee tea chocolate "
    "rice kitchen football tennis chess game movie music guitar piano picture photo film book novel "
    "Shakespeare Einstein Newton Napoleon language French Spanish German grammar sentence summary "
    "list table paragraph essay translate explain describe compare analyze calculate fix install "
    "update delete buy sell order travel hotel flight ticket weather temperature rain time clock "
    "date Monday January birthday number formula equation algebra triangle probability statistics "
    "teacher student school university exam homework life love death dream religion philosophy "
    "freedom problem answer reason idea plan best worst fast cheap expensive modern digital electric "
    "public private important difficult possible json html database algorithm docker linux windows "
    "model token weights tensor gguf robot machine capital population"
)
_AGAIN = (
    "Tell it again.",
    "Tell me that story again.",
    "Repeat the story.",
    "Again, please.",
    "Repeat that.",
    "Please tell it once more.",
)
_SUMS = (
    "What is {} + {}?",
    "What is {} plus {}?",
    "What's {}+{}?",
    "{} + {} =",
    "How much is {} times {}?",
    "What is {} minus {}?",
    "Calculate {} * {}.",
    "Count from {} to {}.",
    "Add {} and {}.",
    "{} / {}",
)


def pick(random: Random, choices: Sequence[Choice]) -> Choice:
    """Return one of the choices, the earlier ones more often.

    Were all as likely, a model's best two tokens would often be a tie, which greedy decoding then breaks by
    the last digits: one text alone, another in a batch.
    """
    return random.choices(choices, [1 / (5 + place) for place in range(len(choices))])[0]


def article(words: str) -> str:
    """Return the words with the right one of `a` and `an` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def casual(random: Random, text: str) -> str:
    """Return the text as somebody in a hurry might type it: sometimes without capitals or the last mark."""
    roll = random.random()
    if roll < 0.12:
        return text[:1].lower() + text[1:]
    if roll < 0.2:
        return text.rstrip("?.!")
    if roll < 0.28:
        return text.lower().rstrip("?.!")
    return text


def nonsense(random: Random) -> str:
    """Return a word that does not exist."""
    letters = "bcdfghjklmnprstvwz"
    word = "".join(pick(random, letters) + pick(random, "aeiou") for _ in range(random.randint(1, 3)))
    return word + pick(random, ("", "n", "r", "st", "ng"))


def off_topic(random: Random) -> str:
    """Return a question or order that neither voice was made for."""
    opener = pick(random, _OPENERS)
    words = [
        nonsense(random) if random.random() < 0.2 else pick(random, _WORDS) for _ in range(opener.count("{}"))
    ]
    return opener.format(*words)


def sums(random: Random) -> str:
    """Return a question that has to be calculated."""
    return pick(random, _SUMS).format(random.randint(0, 120), random.randint(0, 50))


def _exchange(random: Random, voice: Voice) -> list[Turn]:
    """Return a question and an answer that need nothing said before."""
    roll = random.random()
    if roll < 0.72:
        remark = pick(random, voice.remarks)
        said, answer = pick(random, remark.said), pick(random, remark.answers)
    elif roll < 0.94:
        said, answer = off_topic(random), pick(random, voice.unknown)
    else:
        said, answer = sums(random), pick(random, voice.numbers)
    return [Turn("user", casual(random, said)), Turn("assistant", answer)]


def _asked(random: Random, tale: Tale, most: int) -> list[Turn]:
    """Return up to `most` questions about the tale, each answered, and sometimes the tale once more."""
    turns = []
    for question, answer in random.sample(tale.questions, min(most, len(tale.questions))):
        turns += [Turn("user", casual(random, question)), Turn("assistant", answer)]
    if random.random() < 0.2:
        turns += [Turn("user", casual(random, pick(random, _AGAIN))), Turn("assistant", tale.text)]
    return turns


def _told(random: Random, voice: Voice) -> list[Turn]:
    """Return a wish for a tale, the tale, and questions about it."""
    wish, before, tale = voice.request(random)
    turns = [Turn("user", casual(random, wish)), Turn("assistant", f"{before} {tale.text}".strip())]
    return turns + _asked(random, tale, random.choice((0, 0, 3, 6)))


def _read(random: Random, voice: Voice) -> list[Turn]:
    """Return questions about a tale that the user tells."""
    tale = voice.tale(random)
    (question, answer), *rest = random.sample(tale.questions, len(tale.questions))
    before = pick(random, ("", "", "Read this story: ", "Here is a story: ", "Story: ", "Listen: "))
    between = pick(random, (" ", "\n", "\n\n", "\n\n", " Question: ", "\n\nQuestion: "))
    if random.random() < 0.15:
        text = f"{question} {before}{tale.text}"
    else:
        text = f"{before}{tale.text}{between}{question}"
    turns = [Turn("user", text), Turn("assistant", answer)]
    return turns + _asked(random, Tale(tale.text, tuple(rest)), random.choice((4, 8, 12)))


def _named(random: Random, voice: Voice, name: str) -> list[Turn]:
    """Return an introduction of the user."""
    said = pick(
        random, ("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}.", "Call me {}.")
    )
    return [
        Turn("user", said.format(name)),
        Turn("assistant", pick(random, voice.introductions).format(name)),
    ]


def _recalled(random: Random, voice: Voice, name: str | None) -> list[Turn]:
    """Return a question for the user's name, which is None when it was never told."""
    said = pick(random, ("What is my name?", "Who am I?", "Do you know my name?", "Do you remember my name?"))
    answer = pick(random, voice.strangers) if name is None else pick(random, voice.reminders).format(name)
    return [Turn("user", casual(random, said)), Turn("assistant", answer)]


def conversation(random: Random, voice: Voice) -> tuple[Turn, ...]:
    """Make up a conversation of one to about eight exchanges."""
    turns: list[Turn] = []
    name = None
    if random.random() < 0.3:
        text = pick(random, voice.systems)
        if "{}" in text:
            name = pick(random, PEOPLE)
            text = text.format(name)
        turns.append(Turn("system", text))
        if name is not None and random.random() < 0.7:
            turns.append(
                Turn("user", casual(random, pick(random, ("Hello", "Hello!", "Hi", "Hey", "Good day"))))
            )
            turns.append(Turn("assistant", pick(random, voice.greetings).format(name)))
    makers: tuple[Callable[[Random, Voice], list[Turn]], ...] = (_exchange, _exchange, _told, _read)
    for _ in range(random.choice((1, 1, 1, 1, 2, 2, 3))):
        roll = random.random()
        if roll < 0.07 and name is None:
            name = pick(random, PEOPLE)
            turns += _named(random, voice, name)
        if roll < 0.05 or (name is not None and roll > 0.8) or roll > 0.98:
            turns += _recalled(random, voice, name)
        else:
            turns += pick(random, makers)(random, voice)
    return tuple(turns)
