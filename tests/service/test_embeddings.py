from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from service_fakes import FakeManager, settle

from shardload.errors import PromptTooLong, RequestError
from shardload.service import EmbeddingRequest, Service


async def test_embeddings(service: Service, manager: FakeManager) -> None:
    made = await service.embed(service.plan(EmbeddingRequest("vectors", ("a", list(b"bc")))))
    assert (made.model, made.rule, made.prompt_tokens) == ("vectors", "name", 4)
    assert [len(vector) for vector in made.vectors] == [8, 8]
    short = await service.embed(service.plan(EmbeddingRequest("vectors", ("a",), dimensions=3)))
    assert len(short.vectors[0]) == 3
    assert np.isclose(np.linalg.norm(short.vectors[0]), 1)
    whole = made.vectors[0][:3] / np.linalg.norm(made.vectors[0][:3])
    assert np.allclose(short.vectors[0], whole)
    assert manager.leases == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (EmbeddingRequest("vectors", ("a",), dimensions=9), "dimensions is 9 and the model's vectors have 8"),
        (EmbeddingRequest("vectors", ((),)), "input is empty"),
        (EmbeddingRequest("vectors", ("x" * 600,)), "tokens"),
        (EmbeddingRequest("vectors", ((9999,),)), "token 9999 is not in the vocabulary"),
    ],
)
async def test_embeddings_that_cannot_be(
    service: Service, manager: FakeManager, request_: EmbeddingRequest, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        await service.embed(service.plan(request_))
    assert caught.value.param in ("input", "dimensions")
    assert manager.leases == []


async def test_many_texts_let_others_in_between(service: Service, manager: FakeManager) -> None:
    small, many = EmbeddingRequest("vectors", ("a",)), EmbeddingRequest("vectors", ("b", "bcd", "bc") * 100)
    alone = [
        (await service.embed(service.plan(EmbeddingRequest("vectors", (text,))))) for text in many.inputs
    ]
    runner, ended = manager.runners["vectors", "embed"], []
    runner.gate.clear()
    runner.entered.clear()

    async def embed(request: EmbeddingRequest) -> list[Any]:
        made = await service.embed(service.plan(request))
        ended.append(request)
        return list(made.vectors)

    first = asyncio.create_task(embed(many))
    await asyncio.to_thread(runner.entered.wait, 30)
    second = asyncio.create_task(embed(small))
    await settle()
    runner.gate.set()
    vectors, _ = await asyncio.gather(first, second)
    assert ended == [small, many]
    assert all(np.array_equal(one.vectors[0], vector) for one, vector in zip(alone, vectors, strict=True))


async def test_many_texts_of_which_one_is_too_long_are_refused_at_once(
    service: Service, manager: FakeManager
) -> None:
    await service.embed(service.plan(EmbeddingRequest("vectors", ("a",))))
    runner = manager.runners["vectors", "embed"]
    steps = len(runner.steps)
    with pytest.raises(PromptTooLong):
        await service.embed(service.plan(EmbeddingRequest("vectors", (*("b",) * 100, "c" * 600))))
    assert len(runner.steps) == steps
