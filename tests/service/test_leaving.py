"""Clients that leave, in every phase, and models that are taken away."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fakes import FakeVocab
from service_fakes import ASKED, GREEDY, FakeCatalog, FakeManager, ask, read, settle

from shardload.chat.messages import Message
from shardload.engine import Lane
from shardload.errors import ShardloadError
from shardload.service import ChatRequest, CompletionRequest, EmbeddingRequest, Options, Service


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_the_model_opens(service: Service, manager: FakeManager) -> None:
    manager.gate = asyncio.Event()
    task = asyncio.create_task(service.start(service.plan(ChatRequest("small", ASKED))))
    await settle()
    await cancelled(task)
    assert manager.history == []


async def test_cancelled_while_tokens_are_made(catalog: FakeCatalog, manager: FakeManager) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(FakeVocab):
        def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
            if len(text) > 100:
                entered.set()
                assert leave.wait(30)
                assert manager.leases, "the lease must outlast the work on its model"
            return super().tokenize(text, add_special=add_special)

    manager.vocab = Slow()
    service = Service(catalog, manager)  # type: ignore[arg-type]
    request = ChatRequest("small", (Message("user", "x" * 50_000),))
    task = asyncio.create_task(service.start(service.plan(request)))
    await asyncio.to_thread(entered.wait, 30)
    task.cancel()
    await settle()
    assert len(manager.leases) == 1
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.leases == []


@pytest.mark.parametrize("n", [1, 3])
async def test_cancelled_while_waiting_for_a_delta(service: Service, manager: FakeManager, n: int) -> None:
    await ask(service, ChatRequest("small", ASKED, options=GREEDY))
    runner = manager.runners["small", "generate"]
    runner.gate.clear()
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    task = asyncio.create_task(read(answer))
    await settle()
    await cancelled(task)
    assert manager.leases == []
    assert answer.usage.completion_tokens == 0
    runner.gate.set()
    assert await ask(service, ChatRequest("small", ASKED, options=GREEDY)) == {0: "<Hi>"}


@pytest.mark.parametrize("n", [1, 3])
async def test_what_a_patient_reader_left_unread_is_counted(
    service: Service, manager: FakeManager, n: int
) -> None:
    manager.reply = lambda prompt: "x" * 400
    await ask(service, ChatRequest("small", ASKED, options=GREEDY))
    runner, steps, far = manager.runners["small", "generate"], iter(range(40)), threading.Event()
    runner.on_decode = lambda runs: next(steps, None) is None and far.set()
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    async with answer:
        answer.be_patient()
        assert await asyncio.to_thread(far.wait, 30)
    assert answer.usage.completion_tokens > 30 * n


@pytest.mark.parametrize("n", [1, 3])
async def test_closed_in_the_middle(service: Service, manager: FakeManager, n: int) -> None:
    manager.reply = lambda prompt: "x" * 400
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    async with answer:
        await anext(answer)
    assert manager.leases == []
    with pytest.raises(StopAsyncIteration):
        await anext(answer)
    await answer.aclose()


@pytest.mark.parametrize("n", [1, 3])
async def test_closed_while_somebody_waits_for_it(service: Service, manager: FakeManager, n: int) -> None:
    await ask(service, ChatRequest("small", ASKED, options=GREEDY))
    runner = manager.runners["small", "generate"]
    runner.gate.clear()
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    waiting = asyncio.create_task(read(answer))
    await settle()
    await answer.aclose()
    assert await waiting == {}
    assert manager.leases == []
    runner.gate.set()


@pytest.mark.parametrize("n", [1, 3])
async def test_a_model_taken_away_in_the_middle(
    service: Service, manager: FakeManager, lane: Lane, n: int
) -> None:
    await ask(service, ChatRequest("small", ASKED, options=GREEDY))
    runner, engine = manager.runners["small", "generate"], manager.engines["small", "generate"]
    runner.gate.clear()
    answer = await service.start(service.plan(ChatRequest("small", ASKED, n=n, options=GREEDY)))
    gone = lane.detach(engine)
    runner.gate.set()
    with pytest.raises(ShardloadError, match="'small' was closed"):
        await read(answer)
    await asyncio.wrap_future(gone)
    assert manager.leases == []


async def test_cancelled_while_vectors_are_made(service: Service, manager: FakeManager) -> None:
    plan = service.plan(EmbeddingRequest("vectors", ("a",)))
    await service.embed(plan)
    runner = manager.runners["vectors", "embed"]
    runner.gate.clear()
    task = asyncio.create_task(service.embed(plan))
    await settle()
    assert len(manager.leases) == 1
    await cancelled(task)
    assert manager.leases == []
    runner.gate.set()


async def test_an_answer_left_lying_is_told(service: Service) -> None:
    answer = await service.start(
        service.plan(CompletionRequest("small", ("a",), options=Options(max_tokens=0)))
    )
    with pytest.warns(ResourceWarning, match="unclosed answer cmpl-"):
        answer.__del__()
    await answer.aclose()
