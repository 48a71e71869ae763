"""The shipped models say through us what they say through llama-cpp-python."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

from shardload.demo import demo_folder
from shardload.engine.runner import Run
from shardload.engine.sampling import SamplingParams
from shardload.llama import Context, ContextParams, Model
from shardload_native.amx import avoid_traps
from shardload_native.library import load

TOKENS = 64


@pytest.mark.real
@pytest.mark.parametrize("name", ["fable", "pirate"])
@pytest.mark.parametrize("prompt", ["Once upon a time", "Who are you?", "The fox and the ship"])
def test_greedy_text(name: str, prompt: str) -> None:
    path = demo_folder() / f"{name}.gguf"
    avoid_traps(load())  # the same libraries serve both
    reference = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    expected = reference.tokenize(prompt.encode())
    prompt_tokens = len(expected)
    for token in reference.generate(list(expected), temp=0, repeat_penalty=1.0):
        expected.append(token)
        if token in (reference.token_eos(), -1) or len(expected) == prompt_tokens + TOKENS:
            break
    reference.close()
    with (
        Model.open([path]) as model,
        Context(model, ContextParams(ctx_tokens=512, threads=1, threads_batch=1)) as context,
        context.sampler(SamplingParams(temperature=0), []) as sampler,
    ):
        tokens = model.vocab.tokenize(prompt)
        assert tokens == expected[:prompt_tokens]
        computed = 0
        while len(tokens) < len(expected):
            assert context.decode([Run(0, computed, tokens[computed:], "last")])
            computed = len(tokens)
            tokens.append(sampler.sample(0))
    assert tokens == expected


@pytest.mark.real
def test_embeddings() -> None:
    path = demo_folder() / "embed.gguf"
    texts = ["the fox ran home", "a ship on the sea"]
    avoid_traps(load())
    reference = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, embedding=True
    )
    expected = [np.array(vector) for vector in reference.embed(texts, normalize=False)]
    reference.close()
    params = ContextParams(ctx_tokens=256, slots=2, threads=1, threads_batch=1, embeddings=True)
    with Model.open([path]) as model, Context(model, params) as context:
        assert context.decode(
            [Run(slot, 0, model.vocab.tokenize(text), "all") for slot, text in enumerate(texts)]
        )
        for slot, vector in enumerate(expected):
            np.testing.assert_allclose(context.embedding(slot), vector, rtol=1e-2, atol=1e-3)
