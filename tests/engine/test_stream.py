from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from fakes import FakeRunner, FakeVocab
from service_fakes import count_wakes

from shardload.engine import Delta, Engine, GenerationRequest, Lane, SamplingParams
from shardload.engine.request import Finish, Timings, Usage
from shardload.engine.stream import PATIENT_EVENTS, DeltaStream, Mailbox, Poster
from shardload.errors import DecodeFailed, ModelUnavailable

pytestmark = pytest.mark.anyio
GREEDY = SamplingParams(temperature=0)
ENDED = Finish("length", None, Usage(1, 0, 1), Timings(0.0, 0.0, 0.0))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lane() -> Iterator[Lane]:
    with Lane(output_limit_tokens=16) as lane:
        yield lane


class FakeLoop(asyncio.AbstractEventLoop):
    """Keeps what it is asked to call."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self._calls = calls

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object, **_: object) -> Any:
        self._calls.append(callback)


def asking(text: str, max_tokens: int | None = None) -> GenerationRequest:
    return GenerationRequest(FakeVocab().tokenize(text), max_tokens, GREEDY)


async def whole(stream: DeltaStream) -> str:
    return "".join([delta.text async for delta in stream])


async def read(engine: Engine, text: str) -> str:
    async with engine.stream(asking(text)) as stream:
        return await whole(stream)


async def test_many_streams_get_their_own_text(lane: Lane) -> None:
    engine = lane.attach(FakeRunner(reply=lambda prompt: f"you said {prompt.decode()}"), name="model")
    texts = await asyncio.gather(*(read(engine, f"word {number}") for number in range(12)))
    assert texts == [f"you said word {number}" for number in range(12)]


async def test_a_reader_that_pauses_misses_nothing(lane: Lane) -> None:
    runner = FakeRunner(ctx_tokens=2048, reply=lambda prompt: "abcdefghij" * 30)
    engine = lane.attach(runner, name="model")
    text = ""
    async with engine.stream(asking("x")) as stream:
        async for delta in stream:
            if len(text) % 16 == 0:
                # Another sequence comes and goes while this reader does not read.
                assert await read(engine, "y")
            text += delta.text
    assert text == "abcdefghij" * 30


async def test_a_patient_reader_gets_everything_however_little_the_lane_runs_ahead(lane: Lane) -> None:
    runner = FakeRunner(ctx_tokens=2048, reply=lambda prompt: "abcdefghij" * 30)
    engine = lane.attach(runner, name="model")
    async with engine.stream(asking("x")) as stream:
        stream.be_patient()
        assert await whole(stream) == "abcdefghij" * 30


@pytest.mark.parametrize("limit", [1, 2, 3, 16, 127, 1000])
async def test_little_lies_where_a_sequence_may_be_held_back(limit: int) -> None:
    wakes: list[Callable[[], object]] = []
    poster = Poster(FakeLoop(wakes), limit)
    mailbox = Mailbox(poster)
    mailbox.patient = True
    for posted in range(1, 2 * limit + 1):
        mailbox((Delta("a", (1,)),))
        poster.flush()
        while wakes:
            wakes.pop()()
        # As `Admission` has it: less than this behind, and it goes on.
        assert posted - len(mailbox.events) < limit // 2 + 1


async def test_nothing_of_a_closed_stream_lies_about() -> None:
    wakes: list[Callable[[], object]] = []
    poster = Poster(FakeLoop(wakes), limit=256)
    closed, other = Mailbox(poster), Mailbox(poster)
    closed.patient = other.patient = True
    for mailbox in (closed, other):
        mailbox((Delta("a", (1,)), Delta("b", (2,))))
    poster.flush()
    closed.close()
    assert (len(closed.events), len(other.events), wakes) == (0, 2, [])
    # What was computed meanwhile does not wait for company.
    closed((Delta("c", (3,)),))
    poster.flush()
    assert len(wakes) == 1


async def test_a_patient_reader_hears_of_errors_at_once(lane: Lane) -> None:
    engine = lane.attach(FakeRunner(ctx_tokens=2048, reply=lambda prompt: "z" * 1000), name="model")
    async with engine.stream(asking("x")) as stream:
        stream.be_patient()
        assert await anext(stream)
        lane.detach(engine)
        with pytest.raises(ModelUnavailable):
            async for _ in stream:
                pass


async def test_the_loop_of_patient_readers_sleeps_until_an_answer_ends() -> None:
    wakes: list[Callable[[], object]] = []
    poster = Poster(FakeLoop(wakes), limit=256)
    patient, other = Mailbox(poster), Mailbox(poster)
    patient.patient = True

    def post(mailbox: Mailbox, *deltas: Delta) -> int:
        mailbox(deltas)
        poster.flush()
        return len(wakes)

    assert [post(patient, Delta("a", (1,))) for _ in range(3)] == [0, 0, 0]
    assert post(other, Delta("b", (2,))) == 1
    wakes.pop()()
    assert (len(patient.events), len(other.events)) == (3, 1)
    assert post(patient, Delta("c", (3,))) == 0
    assert post(patient, Delta("", (), finish=ENDED)) == 1
    wakes.pop()()
    assert len(patient.events) == 5
    assert [post(patient, Delta("d", (4,))) for _ in range(PATIENT_EVENTS)][-2:] == [0, 1]


async def test_leaving_early_cancels_the_sequence(lane: Lane) -> None:
    runner = FakeRunner(
        slots=1, ctx_tokens=4096, reply=lambda prompt: "z" * (4000 if b"long" in prompt else 3)
    )
    engine = lane.attach(runner, name="model")
    async with engine.stream(asking("long")) as stream:
        assert (await anext(stream)).text == "z"
    assert await read(engine, "short") == "zzz"
    await stream.aclose()
    assert [delta async for delta in stream] == []


async def test_nothing_is_read_after_closing(lane: Lane) -> None:
    stream = lane.attach(FakeRunner(reply=lambda prompt: "abc"), name="model").stream(asking("x"))
    assert (await anext(stream)).text == "a"
    stream.close()
    # What the lane had on its way arrives all the same.
    stream._mailbox.receive((Delta("b", (98,)),))
    assert [delta async for delta in stream] == []


async def test_a_cancelled_task_leaves_its_sequence(lane: Lane) -> None:
    runner = FakeRunner(slots=1, reply=lambda prompt: "ok")
    engine = lane.attach(runner, name="model")
    runner.gate.clear()
    with anyio.move_on_after(0):
        await read(engine, "never read")
    runner.gate.set()
    assert await read(engine, "next") == "ok"


async def test_closing_wakes_a_waiting_reader(lane: Lane) -> None:
    runner = FakeRunner()
    runner.gate.clear()
    stream = lane.attach(runner, name="model").stream(asking("x"))
    waiting = asyncio.ensure_future(anext(stream, None))
    assert await asyncio.to_thread(runner.entered.wait, 30)
    await stream.aclose()
    assert await waiting is None
    runner.gate.set()


async def test_an_error_is_raised_where_the_stream_is_read(lane: Lane) -> None:
    engine = lane.attach(FakeRunner(fail_steps=[1]), name="model")
    stream = engine.stream(asking("x"))
    with pytest.raises(DecodeFailed):
        _ = [delta async for delta in stream]
    assert [delta async for delta in stream] == []


async def test_a_detached_model_ends_its_streams(lane: Lane) -> None:
    runner = FakeRunner(ctx_tokens=4096, reply=lambda prompt: "z" * 4000)
    engine = lane.attach(runner, name="model")
    stream = engine.stream(asking("x"))
    await anext(stream)
    await asyncio.wrap_future(lane.detach(engine))
    with pytest.raises(ModelUnavailable):
        _ = [delta async for delta in stream]


async def test_embeddings_can_be_awaited(lane: Lane) -> None:
    engine = lane.attach(FakeRunner(), name="model")
    assert len(await asyncio.wrap_future(engine.embed([[1], [2]]))) == 2


async def test_one_wake_up_serves_all_streams_of_a_step(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(slots=8, reply=lambda prompt: "x" * 10)
    engine = lane.attach(runner, name="model")
    wakes = count_wakes(asyncio.get_running_loop(), runner, monkeypatch)
    await asyncio.gather(*(read(engine, str(number)) for number in range(8)))
    assert len(wakes) == len(runner.steps)


async def test_a_lost_stream_is_cancelled_and_told_of(lane: Lane) -> None:
    runner = FakeRunner(
        ctx_tokens=4096, slots=1, reply=lambda prompt: "z" * (4000 if b"long" in prompt else 2)
    )
    engine = lane.attach(runner, name="model")
    lost = [engine.stream(asking("long"))]
    with pytest.warns(ResourceWarning, match="DeltaStream"):
        lost.clear()
    assert await read(engine, "short") == "zz"


def test_a_closed_loop_cancels_its_streams(lane: Lane) -> None:
    runner = FakeRunner(
        ctx_tokens=4096, slots=1, reply=lambda prompt: "z" * (4000 if b"long" in prompt else 2)
    )
    engine = lane.attach(runner, name="model")
    runner.gate.clear()

    async def leave() -> object:
        stream = engine.stream(asking("long"))
        assert await asyncio.to_thread(runner.entered.wait, 30)
        return stream

    stream = asyncio.run(leave())
    runner.gate.set()
    assert asyncio.run(read(engine, "short")) == "zz"
    stream.close()  # type: ignore[attr-defined]
