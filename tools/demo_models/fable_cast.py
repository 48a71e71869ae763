"""Who can be in a fable, and where."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dialogue import article, pick, words

HE = words("Pip Bruno Oskar Rufus Finn Hugo Max Leo Toby Otto Felix Milo")
SHE = words("Luna Mila Tilly Nora Daisy Olive Ruby Ivy Poppy Rosa Lily Hazel")
NAMES = tuple(name for pair in zip(HE, SHE, strict=True) for name in pair)
KINDS = words(
    "fox rabbit bear mouse owl duck frog cat dog hen squirrel hedgehog turtle crow goat sheep wolf "
    "otter deer bee"
)
ADJECTIVES = words("small young old brave shy clever kind lazy curious gentle quick proud")
HOMES = (
    "in a den under an old oak",
    "near the river",
    "at the edge of the forest",
    "on a green hill",
    "behind the mill",
    "beside a quiet lake",
    "in a hollow tree",
    "in a little garden",
    "under a stone bridge",
    "in a warm barn",
)
PLACES = {
    "forest": "in",
    "meadow": "in",
    "village": "in",
    "garden": "in",
    "valley": "in",
    "river": "at",
    "lake": "at",
    "mill": "at",
    "bridge": "at",
    "hill": "on",
}
COLOURS = words("red blue green yellow white golden")
THINGS = words("hat ball scarf bell key kite ring drum cup blanket")
FOODS = words("apples berries nuts carrots pears plums seeds cherries")
FEELINGS = words("happy proud glad cheerful calm thankful")
SPOTS = ("under a bush", "behind a stone", "in the tall grass", "under the old bridge", "between two roots")


@dataclass(frozen=True, slots=True)
class Animal:
    """Somebody in a story."""

    name: str
    kind: str
    adjective: str

    @property
    def he(self) -> str:
        """The pronoun."""
        return "he" if self.name in HE else "she"

    @property
    def his(self) -> str:
        """The possessive."""
        return "his" if self.name in HE else "her"

    @property
    def him(self) -> str:
        """The pronoun as an object."""
        return "him" if self.name in HE else "her"

    @property
    def described(self) -> str:
        """What it is, with an article: `a small fox named Pip`."""
        return f"{article(self.adjective)} {self.kind} named {self.name}"


@dataclass(frozen=True, slots=True)
class Cast:
    """What a plot is filled with: two animals, a home and a place."""

    hero: Animal
    friend: Animal
    home: str
    place: str
    feeling: str

    @property
    def there(self) -> str:
        """The place with its preposition: `in the forest`."""
        return f"{PLACES[self.place]} the {self.place}"


def cast(random: Random, kind: str | None = None, name: str | None = None, other: str | None = None) -> Cast:
    """Choose who and where; a kind or name that is given is kept."""
    name = name or pick(random, NAMES)
    kind = kind or pick(random, [one for one in KINDS if one != other])
    friend_name = pick(random, [one for one in NAMES if one != name])
    other = other or pick(random, [one for one in KINDS if one != kind])
    hero = Animal(name, kind, pick(random, ADJECTIVES))
    friend = Animal(friend_name, other, pick(random, ADJECTIVES))
    return Cast(hero, friend, pick(random, HOMES), pick(random, tuple(PLACES)), pick(random, FEELINGS))
