"""Pairs of sentences that mean the same, from which the embedding model learns what is alike.

A scene has several phrasings with slots; a slot holds a notion, and a notion has several words. Two phrasings
of a scene with the same notions are a pair, and every other pair in a batch is a contrast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from dialogue import Voice, capital, nonsense, pick
from fable import Fable
from pirate import Pirate

_SLOT = re.compile(r"\{(\w+)\}")


def _notions(text: str) -> tuple[tuple[str, ...], ...]:
    """Read notions: separated by commas, the words of one by slashes."""
    return tuple(tuple(word.strip() for word in notion.split("/")) for notion in text.split(","))


NOTIONS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "who": _notions(
        "fox, rabbit/bunny/hare, dog/puppy/hound, cat/kitten, bear, bird/sparrow, horse/pony, mouse, "
        "owl, wolf, frog/toad, captain/skipper, sailor/seaman, pirate/buccaneer, doctor/physician, "
        "teacher/instructor, child/kid, farmer, king/ruler, cook/chef, woman/lady, man/gentleman, "
        "boy/lad, girl, scientist/researcher, driver, soldier, student/pupil, nurse, "
        "programmer/developer, sheep, duck, turtle, princess, merchant/trader"
    ),
    "place": _notions(
        "forest/woods, river/stream, sea/ocean, city/town, house/home, mountain/hill, island/isle, "
        "garden/yard, school, market/shop/store, hospital/clinic, beach/shore, castle/palace, kitchen, "
        "street/road, lake/pond, cave/cavern, library, office, harbour/port, bridge, field/meadow, "
        "village, airport, church"
    ),
    "went": _notions("ran/rushed/hurried/raced, walked/strolled/wandered/went, crept/sneaked"),
    "thing": _notions(
        "ring, key, treasure/riches, book, coin/penny, letter/message, hat/cap, lamp/lantern, map/chart, "
        "bag/sack, box/chest, sword/blade, ball, boat/ship, picture/painting, clock/watch, stone/rock, "
        "flower/blossom, coat/jacket, cup/mug"
    ),
    "found": _notions(
        "found/discovered/came across, lost/mislaid, bought/purchased, sold, stole/robbed, "
        "broke/smashed, hid/concealed"
    ),
    "food": _notions(
        "bread, soup/broth, apples, fish, meat/beef, cheese, rice, cake/pastry, honey, berries, nuts, "
        "eggs, carrots, pizza, pasta/noodles"
    ),
    "feeling": _notions(
        "happy/glad/cheerful/joyful, sad/unhappy/sorrowful, angry/furious/mad, afraid/scared/frightened, "
        "tired/sleepy/exhausted, hungry/starving, proud, ill/sick/unwell, calm/quiet/peaceful, "
        "brave/courageous"
    ),
    "weather": _notions(
        "rainy/wet, snowy, sunny/bright, stormy, foggy/misty, windy, hot/warm, cold/chilly/freezing"
    ),
    "falling": _notions(
        "raining/pouring/wet and rainy, snowing/white with snow, thundering/full of lightning, "
        "freezing/icy, sunny/full of sunshine, cloudy/grey and dark"
    ),
    "when": _notions(
        "today, tomorrow, yesterday, in the morning, in the evening/at night, in summer, in winter"
    ),
    "device": _notions(
        "computer/laptop, phone/telephone/mobile, program/software/application, network/internet "
        "connection, printer, server, camera, television, radio, website/web page, car/automobile, "
        "engine/motor, door, lamp, washing machine"
    ),
    "body": _notions("head, back, leg, arm, stomach/belly, tooth, eye, ear, foot, hand, throat, knee"),
    "instrument": _notions("guitar, piano, violin/fiddle, drum, flute, trumpet"),
    "sport": _notions(
        "football/soccer, tennis, chess, basketball, hockey, golf, swimming, running, cycling/riding a bike"
    ),
    "vehicle": _notions("train/railway, bus/coach, plane/aeroplane, car/automobile, ship/boat, bicycle/bike"),
    "city": _notions(
        "london, paris, berlin, rome, madrid, tokyo, new york, moscow, vienna, cairo, athens, dublin"
    ),
    "item": _notions(
        "house, car/automobile, ticket, book, phone/telephone, table, shirt, bicycle/bike, camera, "
        "computer/laptop, room, dinner/meal, horse, coat/jacket"
    ),
    "task": _notions(
        "cook soup/make soup, bake bread, plant a tree, learn spanish/study spanish, fix a bike/repair a "
        "bike, write a letter, clean the kitchen/tidy the kitchen, train a dog/teach a dog, save money, "
        "build a house/construct a house, paint a wall, draw a horse, grow tomatoes, lose weight, fall "
        "asleep/get to sleep, write a program/write code, install software/set up software, open an "
        "account, make coffee/brew coffee, catch a fish, tie a knot, sail a boat"
    ),
    "subject": _notions(
        "history/the past, mathematics/maths, physics, music, politics/government, medicine/health, law, "
        "art/painting, cooking, gardening, travel/tourism, money/finance, science/research, "
        "animals/wildlife, the sea/the ocean, space/astronomy, language/grammar, religion/faith, "
        "war/battle, love/romance, computers/technology, sports, weather/climate"
    ),
    "size": _notions(
        "big/large/huge, small/little/tiny, old/ancient, new/modern, fast/quick/rapid, slow, "
        "expensive/costly, cheap/inexpensive, beautiful/pretty/lovely, ugly"
    ),
}

SCENES: tuple[tuple[str, ...], ...] = (
    (
        "The {who} {went} to the {place}.",
        "A {who} {went} towards the {place}.",
        "To the {place} {went} the {who}.",
        "It was the {place} that the {who} {went} to.",
    ),
    (
        "The {who} {found} a {thing}.",
        "A {thing} was what the {who} {found}.",
        "One day a {who} {found} a {thing}.",
        "It was a {thing} that the {who} {found}.",
    ),
    (
        "The {who} {found} a {thing} in the {place}.",
        "In the {place} a {who} {found} a {thing}.",
        "It was in the {place} that the {who} {found} the {thing}.",
    ),
    (
        "The {who} lives in the {place}.",
        "The {place} is the home of the {who}.",
        "In the {place} there lives a {who}.",
        "The {who} has a home in the {place}.",
    ),
    (
        "The {who} likes to eat {food}.",
        "The {who} loves {food}.",
        "{food} is the favourite food of the {who}.",
        "The {who} enjoys eating {food}.",
    ),
    (
        "The {who} is {feeling}.",
        "The {who} feels very {feeling}.",
        "What a {feeling} {who}!",
        "It was a {feeling} {who}.",
    ),
    ("I am {feeling}.", "I feel {feeling}.", "I am feeling very {feeling}.", "{feeling} is how I feel."),
    (
        "It is {weather} {when}.",
        "The weather is {weather} {when}.",
        "We have {weather} weather {when}.",
        "{when} it is very {weather}.",
    ),
    (
        "It is {falling} {when}.",
        "{when} it is {falling}.",
        "Outside it is {falling} {when}.",
        "The weather: {falling} {when}.",
    ),
    (
        "The {device} is broken.",
        "The {device} does not work.",
        "My {device} has stopped working.",
        "There is a problem with the {device}.",
        "How do I fix my {device}?",
    ),
    (
        "The {device} is {size}.",
        "It is a {size} {device}.",
        "What a {size} {device}!",
        "We have a {size} {device}.",
    ),
    (
        "The {thing} is {size}.",
        "It is a {size} {thing}.",
        "What a {size} {thing}!",
        "She has a {size} {thing}.",
    ),
    (
        "My {body} hurts.",
        "I have a pain in my {body}.",
        "There is an ache in my {body}.",
        "I feel pain in the {body}.",
    ),
    (
        "She plays the {instrument}.",
        "She makes music on the {instrument}.",
        "The {instrument} is what she plays.",
        "She practises the {instrument} every day.",
    ),
    (
        "The {who} plays the {instrument}.",
        "The {instrument} is played by the {who}.",
        "The {who} makes music on the {instrument}.",
    ),
    (
        "I like {sport}.",
        "My favourite sport is {sport}.",
        "{sport} is a sport that I enjoy.",
        "I am a fan of {sport}.",
    ),
    (
        "We took the {vehicle} to {city}.",
        "We travelled to {city} by {vehicle}.",
        "Our trip to {city} was by {vehicle}.",
        "A {vehicle} brought us to {city}.",
    ),
    (
        "How much does the {item} cost?",
        "What is the price of the {item}?",
        "Is the {item} expensive?",
        "What do I have to pay for the {item}?",
    ),
    (
        "I want to buy a {item}.",
        "I would like to purchase a {item}.",
        "Where can I get a {item}?",
        "I am looking for a {item} to buy.",
    ),
    (
        "How do I {task}?",
        "What is the best way to {task}?",
        "Please show me how to {task}.",
        "I want to {task}. How?",
        "Tips for people who want to {task}.",
    ),
    (
        "A book about {subject}.",
        "This text is about {subject}.",
        "I read something about {subject}.",
        "The topic is {subject}.",
        "Tell me something about {subject}.",
    ),
    (
        "The {who} studies {subject}.",
        "{subject} is what the {who} learns.",
        "The {who} learns all about {subject}.",
    ),
    (
        "Where is the {place}?",
        "How do I get to the {place}?",
        "Can you show me the way to the {place}?",
        "I am looking for the {place}.",
    ),
    (
        "The {who} helped the {other}.",
        "The {other} was helped by the {who}.",
        "The {other} got help from the {who}.",
    ),
    (
        "The {who} is afraid of the {other}.",
        "The {other} frightens the {who}.",
        "The {who} fears the {other}.",
    ),
    (
        "The {who} met a {other} in the {place}.",
        "In the {place} the {who} met a {other}.",
        "A {who} ran into a {other} at the {place}.",
    ),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences that mean the same, and the meaning, which no other pair in a batch may share."""

    left: str
    right: str
    meaning: str


def _phrase(random: Random, phrasing: str, notions: Mapping[str, tuple[str, ...]]) -> str:
    text = _SLOT.sub(lambda slot: pick(random, notions[slot[1]]), phrasing)
    return capital(re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text))


def _scene(random: Random) -> Pair:
    phrasings = pick(random, SCENES)
    slots = sorted({slot for phrasing in phrasings for slot in _SLOT.findall(phrasing)})
    notions = {}
    for slot in slots:
        words = pick(random, NOTIONS["who" if slot == "other" else slot])
        notions[slot] = (nonsense(random),) if random.random() < 0.06 else words
    left, right = random.sample(phrasings, 2)
    if random.random() < 0.25:
        right = left
    meaning = f"{phrasings[0]} {sorted(words[0] for words in notions.values())}"
    return Pair(_phrase(random, left, notions), _phrase(random, right, notions), meaning)


def _asked(random: Random, voice: Voice) -> Pair:
    """Return a question about a tale, and its answer."""
    question, answer = pick(random, voice.tale(random).questions)
    return Pair(question, answer, answer)


def _remark(random: Random, voice: Voice) -> Pair:
    """Return two ways to say the same remark."""
    said = pick(random, voice.remarks).said
    left, right = random.sample(said, 2) if len(said) > 1 else (said[0], said[0])
    return Pair(left, right, min(said))


def _joined(random: Random) -> Pair:
    """Return two scenes told one after the other."""
    one, other = _scene(random), _scene(random)
    left, right = f"{one.left} {other.left}", f"{one.right} {other.right}"
    return Pair(left, right, f"{one.meaning} {other.meaning}")


def pair(random: Random) -> Pair:
    """Make up a pair."""
    roll = random.random()
    if roll < 0.78:
        return _scene(random)
    if roll < 0.86:
        return _joined(random)
    return (_asked if roll < 0.95 else _remark)(random, pick(random, _VOICES))


_VOICES: tuple[Voice, ...] = (Fable(), Pirate())
