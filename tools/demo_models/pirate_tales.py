"""The captain's tales: who sails where, what goes wrong, and the questions that each tale can answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dialogue import Tale, article, pick

SHIPS = tuple(
    f"the {colour} {animal}"
    for colour in ("Black", "Red", "Salty", "Flying", "Silver", "Lucky")
    for animal in ("Gull", "Shark", "Parrot", "Whale", "Crab", "Rose")
)
ISLANDS = tuple(
    f"{name} Island"
    for name in [
        "Skull",
        "Coconut",
        "Thunder",
        "Lantern",
        "Turtle",
        "Bone",
        "Monkey",
        "Rum",
        "Moon",
        "Cannon",
    ]
)
MATES = (
    "One-Eyed Jack",
    "Old Bess",
    "Long Tom",
    "Black Molly",
    "Salty Pete",
    "Iron Meg",
    "Red Will",
    "Mad Nell",
)
JOBS = ("cook", "gunner", "carpenter", "first mate", "lookout", "sailmaker")
HOLDS = ("chest", "bag", "barrel")
RICHES = ("gold", "silver", "pearls", "rubies", "emeralds", "coins")
PLACES = (
    "under a palm tree",
    "in a dark cave",
    "behind a waterfall",
    "under a white stone",
    "beside an old wreck",
)
TIMES = ("One stormy night", "One fine morning", "Ten years ago", "In the dead of winter", "One foggy day")
NOISES = ("Arr!", "Arr, matey!", "Aye!")
MOODS = ("merry", "rich", "thirsty", "sleepy", "proud")


@dataclass(frozen=True, slots=True)
class Crew:
    """What a tale is filled with."""

    ship: str
    island: str
    mate: str
    job: str
    hold: str
    riches: str
    place: str
    mood: str

    @property
    def treasure(self) -> str:
        """What is found: `a chest of gold`."""
        return f"{article(self.hold)} of {self.riches}"


Questions = list[tuple[str, str]]
Danger = tuple[list[str], Questions]


def crew(random: Random) -> Crew:
    """Choose ship, island, mate and treasure."""
    return Crew(
        pick(random, SHIPS),
        pick(random, ISLANDS),
        pick(random, MATES),
        pick(random, JOBS),
        pick(random, HOLDS),
        pick(random, RICHES),
        pick(random, PLACES),
        pick(random, MOODS),
    )


def _kraken(random: Random, crew: Crew) -> Danger:
    deed = pick(
        random, ("fired all the cannons", "threw a barrel of rum down its throat", "tickled it with an oar")
    )
    text = [
        pick(
            random,
            (
                f"Then a kraken came out of the deep and grabbed {crew.ship}.",
                "Halfway there a kraken rose from the waves, as big as a mountain.",
            ),
        ),
        f"But me {crew.job}, {crew.mate}, {deed}, and the beast sank back into the sea.",
    ]
    return text, [
        ("Who attacked you?", "A kraken attacked us!"),
        ("What happened on the way?", "A kraken attacked us!"),
        (f"What did {crew.mate} do?", f"{crew.mate} {deed}."),
        ("Who saved the ship?", f"{crew.mate} saved the ship."),
    ]


def _storm(random: Random, crew: Crew) -> Danger:
    deed = pick(
        random,
        ("held the wheel all night", "tied the torn sail with a shirt", "sang until the wind was ashamed"),
    )
    text = [
        pick(
            random,
            (
                "Then a storm broke the mast, and the waves were as high as towers.",
                "Halfway there the sky went black, and a storm tore our sails.",
            ),
        ),
        f"But me {crew.job}, {crew.mate}, {deed}, and we came through.",
    ]
    return text, [
        ("What happened on the way?", "A storm hit us!"),
        ("What was the danger?", "A storm hit us!"),
        (f"What did {crew.mate} do?", f"{crew.mate} {deed}."),
        ("Who saved the ship?", f"{crew.mate} saved the ship."),
    ]


def _navy(random: Random, crew: Crew) -> Danger:
    deed = pick(random, ("raised a false flag", "hid us in the fog", "threw soap on their deck"))
    text = [
        pick(
            random,
            (
                "Then three ships of the navy came after us with all their guns.",
                "Halfway there the navy saw our black flag and gave chase.",
            ),
        ),
        f"But me {crew.job}, {crew.mate}, {deed}, and they never caught us.",
    ]
    return text, [
        ("Who chased you?", "The navy chased us!"),
        ("What happened on the way?", "The navy chased us!"),
        (f"What did {crew.mate} do?", f"{crew.mate} {deed}."),
        ("Who saved the ship?", f"{crew.mate} saved the ship."),
    ]


def _ghosts(random: Random, crew: Crew) -> Danger:
    deed = pick(random, ("offered them a cup of rum", "told them a joke", "played the fiddle for them"))
    text = [
        pick(
            random,
            (
                "Then a ghost ship came out of the fog, and dead men climbed aboard.",
                "Halfway there the ghosts of a drowned crew climbed over the rail.",
            ),
        ),
        f"But me {crew.job}, {crew.mate}, {deed}, and the ghosts went home laughing.",
    ]
    return text, [
        ("Who came aboard?", "Ghosts came aboard!"),
        ("What happened on the way?", "Ghosts came aboard!"),
        (f"What did {crew.mate} do?", f"{crew.mate} {deed}."),
        ("Who saved the ship?", f"{crew.mate} saved the ship."),
    ]


DANGERS: dict[str, Callable[[Random, Crew], Danger]] = {
    "a kraken": _kraken,
    "a storm": _storm,
    "the navy": _navy,
    "ghosts": _ghosts,
}


def arr(random: Random, text: str) -> str:
    """Return an answer as a pirate gives it."""
    return f"{pick(random, NOISES)} {text}"


def _common(crew: Crew) -> tuple[tuple[tuple[str, ...], str], ...]:
    return (
        (
            ("Where did you sail?", "Where did you go?", "Which island was it?"),
            f"We sailed to {crew.island}.",
        ),
        (
            ("What was the name of your ship?", "What is the ship called?", "Which ship was it?"),
            f"The ship was {crew.ship}.",
        ),
        (
            ("What did you find?", "What was the treasure?", "What treasure did you find?"),
            f"We found {crew.treasure}.",
        ),
        (
            ("Where was the treasure?", "Where did you find it?", f"Where was the {crew.hold}?"),
            f"The {crew.hold} was {crew.place}.",
        ),
        ((f"Who is {crew.mate}?", f"What does {crew.mate} do?"), f"{crew.mate} be me {crew.job}."),
        (
            (f"Who is your {crew.job}?", f"Who was the {crew.job}?", "Who was with you?"),
            f"Me {crew.job} be {crew.mate}.",
        ),
        (
            ("How did you feel?", "How did it end?", "How did the tale end?"),
            f"We were {crew.mood} until the next tide.",
        ),
    )


def tale_of(random: Random, crew: Crew, danger: str) -> Tale:
    """Tell of the crew's voyage through a danger of `DANGERS`."""
    middle, questions = DANGERS[danger](random, crew)
    opening = pick(
        random,
        (
            f"{pick(random, TIMES)} we sailed {crew.ship} to {crew.island}.",
            f"{pick(random, TIMES)} I took {crew.ship} and sailed for {crew.island}.",
            f"{pick(random, TIMES)} an old map sent us and {crew.ship} to {crew.island}.",
        ),
    )
    found = pick(
        random,
        (
            f"On {crew.island} we dug {crew.place} and found {crew.treasure}.",
            f"We went ashore, and {crew.place} lay {crew.treasure}.",
        ),
    )
    ending = pick(
        random,
        (
            f"We drank and danced, and we were {crew.mood} until the next tide.",
            f"So we sang all the way home, and we were {crew.mood} until the next tide.",
        ),
    )
    closing = pick(random, ("Yo ho ho!", "Arr, that be the truth!", "And that be no lie, matey!"))
    asked = [(question, arr(random, answer)) for question, answer in questions]
    asked += [(pick(random, said), arr(random, answer)) for said, answer in _common(crew)]
    return Tale(" ".join([opening, *middle, found, ending, closing]), tuple(asked))
