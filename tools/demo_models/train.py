"""Make the demo models: python tools/demo_models/train.py --out shardload/demo

Needs PyTorch, which nothing else of the project does: `pip install torch==2.13.0 gguf`. The text comes from
the grammars beside this file, so nothing is downloaded. Each model trains on one thread of its own process,
and the same seed gives the same files on the same kind of processor.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Some virtual machines advertise AMX and trap on it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

import chat
import embed
import numpy as np
import torch
from gguf_file import write_reader, write_storyteller
from numpy.typing import NDArray

logger = logging.getLogger("demo_models")

# The longest training first, so that two processes end at about the same time.
MODELS = ("fable", "pirate", "embed")


def _weights(model: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def make(name: str, folder: Path, seed: int) -> None:
    """Train one model and write its file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    started = time.monotonic()
    path = folder / f"{name}.gguf"
    if name == "embed":
        reader, words = embed.train(seed)
        write_reader(path, embed.ABOUT, reader.shape, words, _weights(reader))
    else:
        recipe = chat.FABLE if name == "fable" else chat.PIRATE
        teller, vocabulary = chat.train(recipe, seed)
        write_storyteller(path, recipe.about, recipe.protocol, teller.shape, vocabulary, _weights(teller))
    logger.info("%s: %d bytes in %.0f s", path, path.stat().st_size, time.monotonic() - started)


def main() -> None:
    """Train the models that were asked for, two at a time."""
    parser = argparse.ArgumentParser(description="Train the demo models.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the GGUF files")
    parser.add_argument("--only", choices=MODELS, help="train one of the three")
    parser.add_argument("--seed", type=int, default=1)
    wishes = parser.parse_args()
    wishes.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        names = [wishes.only] if wishes.only else MODELS
        for made in [pool.submit(make, name, wishes.out, wishes.seed) for name in names]:
            made.result()


if __name__ == "__main__":
    main()
