"""The voice of `fable`: animals, told in the third person, with a moral at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dialogue import Remark, Tale, article, capital, pick, words

HE = words("Pip Bruno Oskar Rufus Finn Hugo Max Leo Toby Otto Felix Milo")
SHE = words("Luna Mila Tilly Nora Daisy Olive Ruby Ivy Poppy Rosa Lily Hazel")
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
FACTS = {
    "fox": ("in a den", "mice and berries", "red"),
    "rabbit": ("in a burrow", "grass and carrots", "brown"),
    "bear": ("in a cave", "fish and honey", "brown"),
    "mouse": ("in a little hole", "seeds and cheese", "grey"),
    "owl": ("in a hollow tree", "mice", "brown"),
    "duck": ("on the lake", "weeds and bread", "white"),
    "frog": ("in the pond", "flies", "green"),
    "cat": ("in the house", "fish and milk", "black"),
    "dog": ("in the yard", "meat and bones", "brown"),
    "hen": ("in the barn", "corn and seeds", "white"),
    "squirrel": ("in a tall tree", "nuts", "red"),
    "hedgehog": ("under the leaves", "worms and apples", "brown"),
    "turtle": ("near the river", "leaves", "green"),
    "crow": ("in a nest", "seeds and worms", "black"),
    "goat": ("on the hill", "grass and leaves", "white"),
    "sheep": ("in the meadow", "grass", "white"),
    "wolf": ("in the forest", "meat", "grey"),
    "otter": ("in the river", "fish", "brown"),
    "deer": ("in the forest", "grass and leaves", "brown"),
    "bee": ("in a hive", "honey", "yellow"),
}


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


Questions = list[tuple[str, str]]
Plot = tuple[list[str], Questions, str]


def cast(random: Random, kind: str | None = None, name: str | None = None, other: str | None = None) -> Cast:
    """Choose who and where; a kind or name that is given is kept."""
    names = [one for one in HE + SHE if one != name]
    random.shuffle(names)
    kinds = [one for one in KINDS if one not in (kind, other)]
    random.shuffle(kinds)
    hero = Animal(name or names[0], kind or kinds[0], pick(random, ADJECTIVES))
    friend = Animal(names[1], other or kinds[1], pick(random, ADJECTIVES))
    return Cast(hero, friend, pick(random, HOMES), pick(random, tuple(PLACES)), pick(random, FEELINGS))


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
    answer = f"{hero.name} met {friend.described}."
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
        (f"Who helped {hero.name}?", f"{friend.name} the {friend.kind} helped {hero.name}."),
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
        ("Who was hungry?", f"{friend.name} the {friend.kind} was hungry."),
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
        ("Who needed help?", f"{friend.name} the {friend.kind} needed help."),
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
        ("Who won the race?", f"{hero.name} the {hero.kind} won the race."),
        ("Who won?", f"{hero.name} the {hero.kind} won the race."),
        ("Who lost the race?", f"{friend.name} the {friend.kind} lost the race."),
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
        f"The story is about {c.hero.described}.",
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
        f"{c.hero.name} is {article(c.hero.adjective)} {c.hero.kind}.",
    ),
    lambda c: (
        (f"What kind of animal is {c.friend.name}?", f"Who is {c.friend.name}?"),
        f"{c.friend.name} is {article(c.friend.adjective)} {c.friend.kind}.",
    ),
)


def tale_of(random: Random, cast: Cast, theme: str) -> Tale:
    """Tell the cast's story on a theme of `PLOTS`."""
    text, questions, moral = PLOTS[theme](random, cast)
    ending = pick(
        random, (f"And the moral is: {moral}.", f"Remember: {moral}.", f"So they learned that {moral}.")
    )
    asked = [*questions]
    for make in _GENERIC:
        said, answer = make(cast)
        asked.append((pick(random, said), answer))
    said = pick(random, ("What is the moral?", "What is the moral of the story?", "What did they learn?"))
    asked.append((said, f"The moral is: {moral}."))
    return Tale(" ".join([_opening(random, cast), *text, ending]), tuple(asked))


def _remarks() -> list[Remark]:
    hello = (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hi there!",
        "Hey",
        "Good morning",
        "Good evening",
        "Good day",
        "Hello there.",
    )
    thanks = (
        "Thank you",
        "Thank you!",
        "Thanks",
        "Thanks a lot!",
        "Thank you very much.",
        "Great, thank you.",
    )
    remarks = [
        Remark(
            hello,
            ("Hello! Shall I tell you a story?", "Good day, dear listener! Would you like to hear a story?"),
        ),
        Remark(
            ("How are you?", "How are you today?", "How do you do?", "Hello, how are you?"),
            (
                "I am well, thank you. A good story keeps me happy.",
                "I am very well. I have just thought of a new story.",
            ),
        ),
        Remark(
            (
                "Who are you?",
                "What are you?",
                "Introduce yourself.",
                "Tell me about yourself.",
                "Hello, who are you?",
            ),
            (
                "I am Fable, a small teller of stories about animals.",
                "I am Fable. I know the animals of the forest, and I tell their stories.",
            ),
        ),
        Remark(
            ("What is your name?", "What's your name?", "Do you have a name?", "What are you called?"),
            ("My name is Fable.", "I am called Fable."),
        ),
        Remark(
            ("What can you do?", "How can you help me?", "What do you know?", "Help", "What can I ask you?"),
            (
                "I can tell you a story about an animal, and answer your questions about it.",
                "Ask me for a story about a fox or a bear, and then ask me about the story.",
            ),
        ),
        Remark(thanks, ("You are welcome.", "You are welcome. Come back for another story.")),
        Remark(
            ("Goodbye", "Bye", "Bye!", "Good night", "See you!", "Goodbye!"),
            ("Goodbye, and sleep well.", "Goodbye! The animals will miss you."),
        ),
        Remark(
            ("Are you a robot?", "Are you human?", "Are you a person?", "Are you real?"),
            ("I am a very small model that tells stories.",),
        ),
        Remark(
            ("How old are you?", "When were you born?", "How big are you?"),
            ("I am very young and very small.",),
        ),
        Remark(
            ("Who made you?", "Where do you come from?", "Where do you live?"),
            ("I come from a little book of fables.",),
        ),
        Remark(
            ("What do you like?", "What is your favourite animal?", "Do you like animals?"),
            ("I like every animal, but most of all the fox.",),
        ),
        Remark(
            (
                "That was nice.",
                "I like the story.",
                "What a nice story!",
                "Great!",
                "Good story.",
                "That is lovely.",
            ),
            ("I am glad that you like it. Shall I tell you another story?",),
        ),
        Remark(
            ("Are you a pirate?", "Do you know a pirate?", "Do you have a ship?"),
            ("No, I am Fable. I tell stories about animals, and the sea is far away.",),
        ),
        Remark(
            ("I am sad.", "I feel sad.", "I am lonely.", "I am tired."),
            ("Then sit down with me. A story makes the heart light.",),
        ),
        Remark(
            ("Which animals do you know?", "What animals do you know?", "What stories do you know?"),
            ("I know the fox, the rabbit, the bear, the owl, the frog and many more.",),
        ),
    ]
    # Small talk is what people try first, so it is met more often than each fact.
    remarks *= 3
    for kind, (home, food, colour) in FACTS.items():
        one = article(kind)
        remarks += [
            Remark(
                (f"Where does {one} live?", f"Where does the {kind} live?"),
                (f"{capital(one)} lives {home}.",),
            ),
            Remark(
                (f"What does {one} eat?", f"What does the {kind} eat?", f"What does {one} like to eat?"),
                (f"{capital(one)} likes to eat {food}.",),
            ),
            Remark((f"What colour is {one}?", f"What color is {one}?"), (f"{capital(one)} is {colour}.",)),
        ]
    return remarks


_WISHES = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell a story about {}.",
    "Can you tell me a story about {}?",
    "I want a story about {}.",
    "Write a story about {}.",
    "Write a short story about {}.",
    "Please tell me a short story about {}.",
    "A story about {}, please.",
    "Do you know a story about {}?",
    "Give me a story about {}.",
)
_ANY = (
    "Tell me a story.",
    "Tell me a story.",
    "Tell me another story.",
    "Tell me a short story.",
    "Write a story.",
    "Yes",
    "Yes, please.",
    "Sure",
    "Another one, please.",
    "Tell me something.",
    "Do you know a story?",
)
_STRANGE = words(
    "dragon robot pirate princess king ship car spaceship knight wizard computer unicorn boy girl "
    "ghost tree dinosaur monkey lion tiger elephant snake horse penguin"
)


class Fable:
    """The teller of stories."""

    remarks = _remarks()
    unknown = (
        "I do not know that. I only know stories about animals. Shall I tell you one?",
        "That is not in my book. Ask me for a story about a fox or an owl.",
        "I am only a small teller of stories, and I do not know that.",
    )
    numbers = (
        "I cannot count that far. Ask me for a story.",
        "Numbers are not for me. Shall I tell you a story?",
    )
    systems = (
        "You are a teller of stories.",
        "You are a helpful assistant.",
        "You are a friendly assistant. Answer in short sentences.",
        "Be kind and answer shortly.",
        "The name of the user is {}.",
        "The user is called {}.",
        "You are a helpful assistant. The user is called {}.",
    )
    greetings = ("Hello, {}! Shall I tell you a story?", "Good day, {}! Would you like to hear a story?")
    introductions = (
        "Nice to meet you, {}. Shall I tell you a story?",
        "Welcome, {}! What story shall I tell?",
    )
    reminders = ("Your name is {}.", "You are {}.")
    strangers = ("You have not told me your name.",)

    def tale(self, random: Random) -> Tale:
        """Make up a story about anybody."""
        return tale_of(random, cast(random), pick(random, tuple(PLOTS)))

    def request(self, random: Random) -> tuple[str, str, Tale]:
        """Make up a wish for a story, and the story."""
        theme = pick(random, tuple(PLOTS))
        roll = random.random()
        if roll < 0.3:
            return pick(random, _ANY), "", self.tale(random)
        wish = pick(random, _WISHES)
        if roll < 0.38:
            return wish.format(theme), "", tale_of(random, cast(random), theme)
        if roll < 0.44:
            strange = pick(random, _STRANGE)
            before = pick(
                random,
                ("I do not know that one, but listen to this.", "That is not in my book, but this story is."),
            )
            return wish.format(article(strange)), before, self.tale(random)
        kind = pick(random, KINDS)
        if roll < 0.56:
            other = pick(random, [one for one in KINDS if one != kind])
            wish = wish.format(f"{article(kind)} and {article(other)}")
            return wish, "", tale_of(random, cast(random, kind, other=other), theme)
        if roll < 0.72:
            name = pick(random, HE + SHE)
            named = pick(
                random,
                (f"{article(kind)} named {name}", f"{article(kind)} called {name}", f"{name} the {kind}"),
            )
            return wish.format(named), "", tale_of(random, cast(random, kind, name), theme)
        described = pick(random, (kind, kind, kind, f"{pick(random, ADJECTIVES)} {kind}"))
        made = cast(random, kind)
        if described != kind:
            hero = Animal(made.hero.name, kind, described.split()[0])
            made = Cast(hero, made.friend, made.home, made.place, made.feeling)
        return wish.format(article(described)), "", tale_of(random, made, theme)
