"""The embedding model: its training on pairs of sentences that mean the same."""

from __future__ import annotations

import logging
import time
from random import Random

import torch
from dialogue import PEOPLE
from gguf_file import About
from network import Muon, Reader, Shape
from sentences import NOTIONS, Pair, pair
from torch import Tensor
from torch.nn import functional
from vocabulary import Words

logger = logging.getLogger("demo_models")

FILE = "embed.gguf"
ABOUT = About(
    "Embed",
    "Turns short English sentences into vectors; sentences that mean the same lie close together.",
    ("sentence-similarity", "feature-extraction", "demo"),
)
CONTROLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTEXT_TOKENS = 512
VOCABULARY = 1280
STEPS = 500
PAIRS = 128
SHARPNESS = 20.0


def learn_vocabulary(random: Random) -> Words:
    """Learn the words of all sentences."""
    pairs = [pair(random) for _ in range(20000)]
    notions = [word for words in NOTIONS.values() for notion in words for word in notion]
    texts = [*(one.left for one in pairs), *(one.right for one in pairs), *notions * 50, *PEOPLE * 50]
    return Words.learn(texts, CONTROLS, VOCABULARY)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of tokens as one array, and which of it is no padding."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return tokens, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


def _batch(random: Random) -> list[Pair]:
    """Make up pairs of which no two mean the same."""
    pairs: dict[str, Pair] = {}
    while len(pairs) < PAIRS:
        one = pair(random)
        pairs.setdefault(one.meaning, one)
    return list(pairs.values())


def _read(model: Reader, vocabulary: Words, texts: list[str], random: Random) -> Tensor:
    """Return the vectors of texts, half of which begin at a later position, so that long texts work too."""
    tokens, present = padded([vocabulary.encode(text) for text in texts])
    room = CONTEXT_TOKENS - tokens.shape[1]
    first = [random.randint(0, room) if random.random() < 0.5 else 0 for _ in texts]
    vectors: Tensor = model(tokens, present, torch.tensor(first))
    return vectors


def train(seed: int) -> tuple[Reader, Words]:
    """Train the embedding model; the same seed, thread count and machine give the same weights."""
    started = time.monotonic()
    random = Random(f"{FILE} {seed}")
    torch.manual_seed(seed)
    vocabulary = learn_vocabulary(random)
    size = len(vocabulary.tokens)
    model = Reader(
        Shape(
            size, width=96, blocks=2, heads=3, heads_kv=3, hidden=256, context=CONTEXT_TOKENS, epsilon=1e-12
        )
    )
    matrices = [
        weight for name, weight in model.named_parameters() if name.startswith("blk") and weight.ndim == 2
    ]
    others = [
        weight for name, weight in model.named_parameters() if not name.startswith("blk") or weight.ndim == 1
    ]
    optimizers = (Muon(matrices, 0.01), torch.optim.AdamW(others, 2e-3, weight_decay=0.0))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    total = 0.0
    for step in range(1, STEPS + 1):
        share = min(1.0, step / 20, 1.4 * (1 - step / STEPS) + 0.003)
        pairs = _batch(random)
        left = _read(model, vocabulary, [one.left for one in pairs], random)
        right = _read(model, vocabulary, [one.right for one in pairs], random)
        likeness = left @ right.T * SHARPNESS
        target = torch.arange(len(pairs))
        loss = functional.cross_entropy(likeness, target) + functional.cross_entropy(likeness.T, target)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
        if step % 100 == 0:
            logger.info(
                "%s: step %d of %d, loss %.4f, %.0f s",
                FILE,
                step,
                STEPS,
                total / 100,
                time.monotonic() - started,
            )
            total = 0.0
    return model, vocabulary
