"""The two chat models: how their conversations become tokens, and their training."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from dialogue import Turn, Voice, conversation
from fable import Fable
from gguf_file import About, Protocol
from network import Muon, Shape, Storyteller
from pirate import Pirate
from torch import Tensor
from vocabulary import Bytes, Pieces

logger = logging.getLogger("demo_models")

CONTEXT_TOKENS = 1024
GROUP_TOKENS = 1024
GROUPS_IN_STEP = 2
ECHOES = 240
# Sampled at the usual temperatures, a network this small strays; equal choices stay equal.
SHARPNESS = 1.3

FABLE_CONTROLS = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PIRATE_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FABLE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% elif message['role'] in ['system', 'developer'] %}{{ '<|system|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PIRATE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens, and how much each of them matters as something to say: 0 where somebody else speaks."""

    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One chat model: its voice, its sizes and what its file says."""

    file: str
    voice: Voice
    about: About
    protocol: Protocol
    vocabulary_size: int
    tokens: int


FABLE = Recipe(
    "fable.gguf",
    Fable(),
    About(
        "Fable",
        "Tells short stories about animals and answers questions about them.",
        ("text-generation", "demo"),
    ),
    Protocol(FABLE_TEMPLATE, begin="<s>", end="</s>", turn_end="<|end|>", begin_added=True),
    1024,
    3_600_000,
)
PIRATE = Recipe(
    "pirate.gguf",
    Pirate(),
    About(
        "Pirate",
        "An old captain who tells tales of the sea and answers questions about them.",
        ("text-generation", "demo"),
    ),
    Protocol(
        PIRATE_TEMPLATE, begin="<|endoftext|>", end="<|endoftext|>", turn_end="<|im_end|>", begin_added=False
    ),
    704,
    2_600_000,
)


def learn_vocabulary(recipe: Recipe, random: Random) -> Pieces | Bytes:
    """Learn the vocabulary of a chat model from what it says and is asked."""
    turns = [turn for _ in range(6000) for turn in conversation(random, recipe.voice)]
    texts = [turn.text for turn in turns if turn.role == "assistant"]
    texts += [said for remark in recipe.voice.remarks for said in remark.said] * 2
    texts += [*recipe.voice.systems] * 5
    for _ in range(3000):
        wish, _, tale = recipe.voice.request(random)
        texts += [wish, *(question for question, _ in random.sample(tale.questions, 3))]
    if recipe is FABLE:
        return Pieces.learn(texts, FABLE_CONTROLS, recipe.vocabulary_size)
    return Bytes.learn(texts, PIRATE_CONTROLS, recipe.vocabulary_size, 120)


def _weight(turn: Turn, tokens: int) -> float:
    """Return what each token of a turn matters: a short answer is not to drown in the stories around it."""
    return tokens**-0.5 if turn.role == "assistant" else 0.0


def _fable_turn(vocabulary: Pieces, turn: Turn) -> Sample:
    body = [*vocabulary.encode(turn.text), vocabulary.ids["<|end|>"]]
    weights = [0.0] + [_weight(turn, len(body))] * len(body)
    return Sample([vocabulary.ids[f"<|{turn.role}|>"], *body], weights)


def _pirate_turn(vocabulary: Bytes, turn: Turn) -> Sample:
    head = [vocabulary.ids["<|im_start|>"], *vocabulary.encode(f"{turn.role}\n")]
    body = [*vocabulary.encode(turn.text), vocabulary.ids["<|im_end|>"]]
    tail = vocabulary.encode("\n")
    weights = [0.0] * len(head) + [_weight(turn, len(body))] * len(body) + [0.0] * len(tail)
    return Sample(head + body + tail, weights)


def sample(turns: Sequence[Turn], vocabulary: Pieces | Bytes) -> Sample:
    """Return a conversation as the chat template would give it."""
    tokens: list[int] = []
    weights: list[float] = []
    if isinstance(vocabulary, Pieces):
        tokens, weights = [vocabulary.ids["<s>"]], [0.0]
    for turn in turns:
        one = (
            _fable_turn(vocabulary, turn)
            if isinstance(vocabulary, Pieces)
            else _pirate_turn(vocabulary, turn)
        )
        tokens += one.tokens
        weights += one.weights
    return Sample(tokens, weights)


def plain(text: str, vocabulary: Pieces | Bytes) -> Sample:
    """Return a tale that stands alone, with no chat around it."""
    begin = [vocabulary.ids["<s>"]] if isinstance(vocabulary, Pieces) else []
    end = vocabulary.ids["</s>" if isinstance(vocabulary, Pieces) else "<|endoftext|>"]
    tokens = [*begin, *vocabulary.encode(text), end]
    return Sample(tokens, [len(tokens) ** -0.5] * len(tokens))


def samples(recipe: Recipe, vocabulary: Pieces | Bytes, random: Random) -> list[Sample]:
    """Make up samples until there are as many tokens as the recipe wants."""
    made, count = [], 0
    while count < recipe.tokens:
        if random.random() < 0.15:
            one = plain(recipe.voice.tale(random).text, vocabulary)
        else:
            one = sample(conversation(random, recipe.voice), vocabulary)
        if len(one.tokens) <= CONTEXT_TOKENS:
            made.append(one)
            count += len(one.tokens)
    return made


def batches(made: list[Sample], random: Random) -> list[tuple[Tensor, Tensor]]:
    """Group samples of like length into padded arrays, in random order."""
    groups: list[list[Sample]] = [[]]
    for one in sorted(made, key=lambda one: len(one.tokens)):
        if len(one.tokens) * (len(groups[-1]) + 1) > GROUP_TOKENS:
            groups.append([])
        groups[-1].append(one)
    random.shuffle(groups)
    made_batches = []
    for group in groups:
        length = len(group[-1].tokens)
        tokens = [one.tokens + [0] * (length - len(one.tokens)) for one in group]
        weights = [one.weights + [0.0] * (length - len(one.weights)) for one in group]
        made_batches.append((torch.tensor(tokens), torch.tensor(weights)))
    return made_batches


def echoes(vocabulary_size: int, count: int, random: Random) -> list[tuple[Tensor, Tensor]]:
    """Make up groups of random tokens that are said twice; only the second time can be learned.

    A hundred steps on them teach a network to look back and copy; stories alone teach that far more slowly.
    """
    groups = []
    for _ in range(count):
        length = random.randint(8, 32)
        rows = GROUP_TOKENS // (2 * length)
        once = torch.tensor([random.choices(range(vocabulary_size), k=length) for _ in range(rows)])
        weights = torch.zeros(rows, 2 * length)
        weights[:, length + 1 :] = 1
        groups.append((torch.cat((once, once), dim=1), weights))
    return groups


def train(recipe: Recipe, seed: int) -> tuple[Storyteller, Pieces | Bytes]:
    """Train a chat model; the same seed, thread count and machine give the same weights."""
    started = time.monotonic()
    random = Random(f"{recipe.file} {seed}")
    torch.manual_seed(seed)
    vocabulary = learn_vocabulary(recipe, random)
    size = len(vocabulary.tokens)
    model = Storyteller(
        Shape(size, width=128, blocks=4, heads=4, heads_kv=2, hidden=320, context=CONTEXT_TOKENS)
    )
    matrices = [
        weight for name, weight in model.named_parameters() if name.startswith("blk") and weight.ndim == 2
    ]
    others = [
        weight for name, weight in model.named_parameters() if not name.startswith("blk") or weight.ndim == 1
    ]
    optimizers = (Muon(matrices, 0.02), torch.optim.AdamW(others, 3e-3, betas=(0.9, 0.98), weight_decay=0.0))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    groups = echoes(size, ECHOES, random) + batches(samples(recipe, vocabulary, random), random)
    steps = [groups[at : at + GROUPS_IN_STEP] for at in range(0, len(groups), GROUPS_IN_STEP)]
    total = 0.0
    for step, chosen in enumerate(steps, 1):
        share = min(1.0, step / 40, 1.4 * (1 - step / len(steps)) + 0.003)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
        whole = sum(float(weights[:, 1:].sum()) for _, weights in chosen)
        for tokens, weights in chosen:
            loss = model.loss(tokens, weights) / whole
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        for optimizer in optimizers:
            optimizer.step()
        if step % 100 == 0 or step == len(steps):
            seconds = time.monotonic() - started
            logger.info(
                "%s: step %d of %d, loss %.4f, %.0f s", recipe.file, step, len(steps), total / 100, seconds
            )
            total = 0.0
    with torch.no_grad():
        model.output_norm.weight.mul_(SHARPNESS)
    return model, vocabulary
