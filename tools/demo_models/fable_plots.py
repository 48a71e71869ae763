"""The plots of the fables, with the questions that each can answer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from dialogue import Tale, article, capital, pick
from fable_cast import COLOURS, FOODS, SPOTS, THINGS, Cast

Questions = list[tuple[str, str]]
Plot = tuple[list[str], Questions, str]


def _opening(random: Random, cast: Cast) -> str:
    hero = cast.hero
    return pick(
        random,
        (
            f"Once upon a time there was {hero.described}. {capital(hero.he)} lived {cast.home}.",
            f"Once upon a time, {hero.described} lived {cast.home}.",
            f"Long ago, {hero.described} lived {cast.home}.",
            f"There once was {hero.described}, who lived {cast.home}.",
        ),
    )


def _meeting(random: Random, cast: Cast) -> str:
    hero, friend = cast.hero, cast.friend
    return pick(
        random,
        (
            f"There {hero.he} met {friend.described}.",
            f"On the way {hero.he} met {friend.described}.",
            f"Soon {hero.he} met {friend.described}.",
        ),
    )


def _met(cast: Cast) -> Questions:
    hero, friend = cast.hero, cast.friend
    answer = f"{hero.name} met {friend.name}."
    return [(f"Who did {hero.name} meet?", answer), (f"Whom did the {hero.kind} meet?", answer)]


def _went(cast: Cast) -> Questions:
    hero = cast.hero
    answer = f"{hero.name} went to the {cast.place}."
    return [(f"Where did {hero.name} go?", answer), (f"Where did the {hero.kind} go?", answer)]


def _lost(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    colour, thing, spot = pick(random, COLOURS), pick(random, THINGS), pick(random, SPOTS)
    text = [
        pick(
            random,
            (
                f"One day {hero.name} went to the {cast.place} and lost {hero.his} {colour} {thing}.",
                f"One morning {hero.name} lost {hero.his} {colour} {thing} on the way to the {cast.place}.",
            ),
        ),
        pick(
            random,
            (
                f"{capital(hero.he)} looked for it all day, but {hero.he} could not find it.",
                f"{capital(hero.he)} sat down and cried.",
            ),
        ),
        f"Then {hero.he} met {friend.described}.",
        pick(
            random,
            (
                f'"I will help you," said {friend.name}.',
                f'"Do not cry," said {friend.name}. "We will look together."',
            ),
        ),
        f"{friend.name} found the {thing} {spot}, and {hero.name} was {cast.feeling}.",
    ]
    found = f"{friend.name} found the {thing}."
    questions = [
        *_went(cast),
        *_met(cast),
        (f"What did {hero.name} lose?", f"{hero.name} lost a {colour} {thing}."),
        (f"What did the {hero.kind} lose?", f"{hero.name} lost a {colour} {thing}."),
        (f"Where was the {thing}?", f"The {thing} was {spot}."),
        (f"What colour was the {thing}?", f"The {thing} was {colour}."),
        (f"Who found the {thing}?", found),
        (f"Who helped {hero.name}?", f"{friend.name} helped {hero.name}."),
    ]
    return text, questions, pick(random, ("a friend makes every search shorter", "two see more than one"))


def _shared(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    food = pick(random, FOODS)
    text = [
        pick(
            random,
            (
                f"One day {hero.name} went to the {cast.place} and found a basket of {food}.",
                f"One autumn day {hero.name} found a basket of {food} {cast.there}.",
            ),
        ),
        _meeting(random, cast),
        pick(
            random,
            (f'"I am so hungry," said {friend.name}.', f'"I have not eaten all day," said {friend.name}.'),
        ),
        pick(
            random,
            (
                f"{hero.name} thought for a while and gave half of the {food} to {friend.name}.",
                f'"Then eat with me," said {hero.name}, and {hero.he} shared the {food}.',
            ),
        ),
        pick(
            random,
            (
                f"They ate together, and both were {cast.feeling}.",
                f"They sat in the sun and ate, and {hero.name} was {cast.feeling}.",
            ),
        ),
    ]
    questions = [
        *_met(cast),
        (f"What did {hero.name} find?", f"{hero.name} found a basket of {food}."),
        (f"What did the {hero.kind} find?", f"{hero.name} found a basket of {food}."),
        (f"Where did {hero.name} find the {food}?", f"{hero.name} found them {cast.there}."),
        ("Who was hungry?", f"{friend.name} was hungry."),
        (f"What did {hero.name} share?", f"{hero.name} shared the {food}."),
    ]
    return (
        text,
        questions,
        pick(random, ("food tastes best when it is shared", "who gives will have friends")),
    )


def _rescued(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    trap, rescue = pick(
        random,
        (
            ("had fallen into a deep hole", "let down a long rope"),
            ("was caught in a net", "cut the net with a sharp stone"),
            ("was stuck in the mud", "pulled with a strong branch"),
            ("was lost in the dark", "lit a little lamp"),
        ),
    )
    text = [
        pick(
            random,
            (
                f"One night there was a great storm, and {hero.name} heard a cry from the {cast.place}.",
                f"One cold night {hero.name} heard a cry from the {cast.place}.",
            ),
        ),
        f"{capital(hero.he)} was afraid, but {hero.he} went to the {cast.place}.",
        f"There {hero.he} found {friend.described}, who {trap}.",
        f"{hero.name} {rescue}, and {friend.name} was safe.",
        pick(
            random,
            (
                f'"You are brave," said {friend.name}, and {hero.name} was {cast.feeling}.',
                f'"Thank you, {hero.name}," said {friend.name}, and {hero.name} was {cast.feeling}.',
            ),
        ),
    ]
    questions = [
        *_went(cast),
        (f"What happened to {friend.name}?", f"{friend.name} {trap}."),
        (f"How did {hero.name} help?", f"{hero.name} {rescue}."),
        (f"How did {hero.name} help {friend.name}?", f"{hero.name} {rescue}."),
        ("Who needed help?", f"{friend.name} needed help."),
        (f"What did {hero.name} hear?", f"{hero.name} heard a cry from the {cast.place}."),
    ]
    return (
        text,
        questions,
        pick(random, ("the brave are afraid too, but they go", "help first and fear later")),
    )


def _raced(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    text = [
        f"One day {hero.he} met {friend.described}.",
        pick(
            random,
            (
                f'"I am much faster than you," said {friend.name}. "Let us race to the {cast.place}."',
                f'"Let us race to the {cast.place}," said {friend.name}. "I will win."',
            ),
        ),
        pick(
            random,
            (
                f"{friend.name} ran ahead, but then {friend.he} lay down to sleep.",
                f"{friend.name} ran ahead, but then {friend.he} stopped to eat {pick(random, FOODS)}.",
            ),
        ),
        f"{hero.name} went on step by step and came to the {cast.place} first.",
        f"{hero.name} had won, and {hero.he} was {cast.feeling}.",
    ]
    questions = [
        *_met(cast),
        ("Who won the race?", f"{hero.name} won the race."),
        ("Who won?", f"{hero.name} won the race."),
        ("Who lost the race?", f"{friend.name} lost the race."),
        ("Where did they race?", f"They raced to the {cast.place}."),
    ]
    return text, questions, pick(random, ("slow and steady wins the race", "who never stops will arrive"))


def _built(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    work = pick(random, ("house", "boat", "tower", "swing", "wall"))
    bad, good = pick(random, (("straw", "stone"), ("leaves", "wood"), ("sand", "stone"), ("grass", "wood")))
    text = [
        pick(
            random,
            (
                f"One spring {hero.name} built a {work} of {bad} {cast.there}.",
                f"One day {hero.name} wanted a {work}, so {hero.he} built it of {bad} {cast.there}.",
            ),
        ),
        pick(
            random,
            (f"But the wind came, and the {work} broke.", f"But the rain came, and the {work} fell down."),
        ),
        f"Then {hero.he} met {friend.described}.",
        pick(
            random,
            (
                f'"Try again," said {friend.name}, "and take {good}."',
                f'"We will build it of {good}," said {friend.name}.',
            ),
        ),
        f"They built a new {work} of {good}, and it was strong, and {hero.name} was {cast.feeling}.",
    ]
    questions = [
        *_met(cast),
        (f"What did {hero.name} build?", f"{hero.name} built a {work}."),
        (f"What did the {hero.kind} build?", f"{hero.name} built a {work}."),
        (f"Where did {hero.name} build the {work}?", f"{hero.name} built it {cast.there}."),
        (f"What was the new {work} made of?", f"The new {work} was made of {good}."),
        (f"What was the first {work} made of?", f"The first {work} was made of {bad}."),
    ]
    return text, questions, pick(random, ("who falls can stand up again", "good work needs time"))


def _grew(random: Random, cast: Cast) -> Plot:
    hero, friend = cast.hero, cast.friend
    plant = pick(random, ("rose", "sunflower", "pear tree", "apple tree", "bean"))
    text = [
        pick(
            random,
            (
                f"One spring {hero.name} planted a {plant} {cast.there}.".replace("a apple", "an apple"),
                f"One day {hero.name} went to the {cast.place} and planted {article(plant)}.",
            ),
        ),
        pick(
            random,
            (
                f"Every morning {hero.he} gave it water, but nothing came.",
                f"{capital(hero.he)} waited and waited, but nothing came.",
            ),
        ),
        _meeting(random, cast),
        pick(
            random,
            (f'"Have patience," said {friend.name}.', f'"All good things need time," said {friend.name}.'),
        ),
        f"In summer the {plant} was tall and green, and {hero.name} was {cast.feeling}.",
    ]
    questions = [
        *_met(cast),
        (f"What did {hero.name} plant?", f"{hero.name} planted {article(plant)}."),
        (f"What did the {hero.kind} plant?", f"{hero.name} planted {article(plant)}."),
        (f"Where was the {plant}?", f"The {plant} was {cast.there}."),
        (f"What did {friend.name} say?", f"{friend.name} told {hero.name} to be patient."),
    ]
    return text, questions, pick(random, ("patience makes things grow", "good things need time"))


PLOTS: dict[str, Callable[[Random, Cast], Plot]] = {
    "friendship": _lost,
    "sharing": _shared,
    "courage": _rescued,
    "a race": _raced,
    "building": _built,
    "patience": _grew,
}
_GENERIC: tuple[Callable[[Cast], tuple[tuple[str, ...], str]], ...] = (
    lambda c: (
        ("Who is the story about?", "Who is the hero of the story?", "What is the story about?"),
        f"The story is about {article(c.hero.kind)} named {c.hero.name}.",
    ),
    lambda c: (
        (f"What is the name of the {c.hero.kind}?", f"What was the {c.hero.kind} called?"),
        f"The {c.hero.kind} is called {c.hero.name}.",
    ),
    lambda c: (
        (f"What is the name of the {c.friend.kind}?", f"What was the {c.friend.kind} called?"),
        f"The {c.friend.kind} is called {c.friend.name}.",
    ),
    lambda c: (
        (
            f"Where did {c.hero.name} live?",
            f"Where did the {c.hero.kind} live?",
            f"Where does {c.hero.name} live?",
        ),
        f"{c.hero.name} lived {c.home}.",
    ),
    lambda c: (
        (
            f"How did {c.hero.name} feel at the end?",
            f"How did {c.hero.name} feel?",
            f"How did the {c.hero.kind} feel?",
        ),
        f"{c.hero.name} was {c.feeling}.",
    ),
    lambda c: (
        (f"What kind of animal is {c.hero.name}?", f"Who is {c.hero.name}?", f"What is {c.hero.name}?"),
        f"{c.hero.name} is {article(c.hero.kind)}.",
    ),
    lambda c: (
        (f"What kind of animal is {c.friend.name}?", f"Who is {c.friend.name}?"),
        f"{c.friend.name} is {article(c.friend.kind)}.",
    ),
)


def _answered(cast: Cast, answer: str) -> str:
    """Return the answer as the teller gives it: a name is never the first word."""
    return f"Well, {answer}" if answer.startswith((cast.hero.name, cast.friend.name)) else answer


def tale_of(random: Random, cast: Cast, theme: str) -> Tale:
    """Tell the cast's story on a theme of `PLOTS`."""
    text, questions, moral = PLOTS[theme](random, cast)
    ending = pick(
        random, (f"And the moral is: {moral}.", f"Remember: {moral}.", f"So they learned that {moral}.")
    )
    asked = [*questions]
    lesson = ("What is the moral?", "What is the moral of the story?", "What did they learn?")
    for said, answer in (*(make(cast) for make in _GENERIC), (lesson, f"The moral is: {moral}.")):
        asked.append((pick(random, said), answer))
    asked = [(question, _answered(cast, answer)) for question, answer in asked]
    return Tale(" ".join([_opening(random, cast), *text, ending]), tuple(asked))
