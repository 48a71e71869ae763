"""The voice of `fable`: animals, told in the third person, with a moral at the end."""

from __future__ import annotations

from random import Random

from dialogue import Remark, Tale, Voice, article, capital, pick, words
from fable_cast import ADJECTIVES, KINDS, NAMES, Animal, Cast, cast
from fable_plots import PLOTS, tale_of

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


_HELLO = (
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
_THANKS = (
    "Thank you",
    "Thank you!",
    "Thanks",
    "Thanks a lot!",
    "Thank you very much.",
    "Great, thank you.",
)
_SMALL_TALK = [
    Remark(
        _HELLO,
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
    Remark(_THANKS, ("You are welcome.", "You are welcome. Come back for another story.")),
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


def _remarks() -> list[Remark]:
    # Small talk is what people try first, so it is met more often than each fact.
    remarks = _SMALL_TALK * 3
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


class Fable(Voice):
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
            name = pick(random, NAMES)
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
