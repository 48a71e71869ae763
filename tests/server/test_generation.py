from __future__ import annotations

import asyncio

import anyio
import msgspec
import pytest

from shardload.answer import AnswerDelta
from shardload.errors import DecodeFailed, OpenFailed, ShuttingDown
from shardload_server import generation, streaming
from shardload_server.exchange import ClientLeft

pytestmark = pytest.mark.anyio

DONE = b"data: [DONE]\n\n"


def events(raw: bytes) -> list:
    """The decoded JSON of the events in a stream, comments left out."""
    frames = raw.removesuffix(DONE).split(b"\n\n")
    return [
        msgspec.json.decode(frame.removeprefix(b"data: ")) for frame in frames if frame.startswith(b"data: ")
    ]


async def test_a_stream_of_chunks(serve):
    async with serve() as served:
        response = await served.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-shardload-model"] == "ada"
    assert response.content.endswith(DONE)
    chunks = events(response.content)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["timings"]["predicted_n"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_who_wants_the_whole_answer_is_not_woken_for_each_delta(serve, answer, stream):
    async with serve() as served:
        given = answer("ada").say("a", "b").end()
        served.service.answers.append(given)
        assert (await served.chat(stream=stream)).status_code == 200
    assert given.patient is not stream


async def test_usage_comes_in_a_chunk_of_its_own(serve):
    async with serve() as served:
        response = await served.chat(stream=True, stream_options={"include_usage": True})
    chunks = events(response.content)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 3
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_choices_interleave(serve, answer):
    async with serve() as served:
        mixed = answer("ada").say("a", index=1).say("b").say("c", index=1)
        served.service.answers.append(mixed.end(index=0, last=False).end(index=1))
        chunks = events((await served.chat(stream=True, n=2)).content)
    told = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"].get("content")) for chunk in chunks]
    assert told == [(1, ""), (1, "a"), (0, ""), (0, "b"), (1, "c"), (0, None), (1, None)]


async def test_streamed_completions_with_echo_and_logprobs(serve, answer, logprob):
    async with serve() as served:
        echoed = await served.client.post(
            "/v1/completions", json={"model": "ada", "prompt": "Say: ", "echo": True, "stream": True}
        )
        told = answer("ada").put(AnswerDelta(0, "H", (logprob("H", -1.0),)))
        served.service.answers.append(told.put(AnswerDelta(0, "e", (logprob("e", -2.0),))).end())
        measured = await served.client.post(
            "/v1/completions", json={"model": "ada", "prompt": "x", "logprobs": 1, "stream": True}
        )
    assert "".join(chunk["choices"][0]["text"] for chunk in events(echoed.content)) == "Say: Hello there"
    offsets = [
        chunk["choices"][0]["logprobs"]["text_offset"]
        for chunk in events(measured.content)
        if chunk["choices"][0]["logprobs"]
    ]
    assert offsets == [[0], [1]]


async def test_streamed_logprobs(serve, answer, logprob):
    async with serve() as served:
        served.service.answers.append(answer("ada").put(AnswerDelta(0, "H", (logprob("H", -1.0),))).end())
        chunks = events((await served.chat(stream=True, logprobs=True)).content)
    assert chunks[1]["choices"][0]["delta"] == {"content": "H"}
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -1.0


@pytest.mark.parametrize("text", ['"\\\n\r\t', "\u2028\u2029\x00\x7f", "é漢😀", "</script>", "data: x\n\n"])
async def test_text_of_any_kind_survives(serve, answer, text):
    async with serve() as served:
        served.service.answers.append(answer("ada").say(text).end())
        chunks = events((await served.chat(stream=True)).content)
    assert chunks[1]["choices"][0]["delta"]["content"] == text


async def test_a_failure_after_the_beginning_ends_the_stream_with_an_error(serve, answer):
    async with serve() as served:
        served.service.answers.append(broken := answer("ada").say("Hel").put(DecodeFailed(-3)))
        response = await served.chat(stream=True)
    assert response.status_code == 200
    assert b"[DONE]" not in response.content
    assert events(response.content)[-1]["error"]["message"] == "llama_decode failed with status -3"
    assert broken.closed.is_set()


async def test_a_failure_before_the_first_delta_is_a_status(serve, answer, error_of):
    async with serve() as served:
        served.service.answers.append(answer("ada").put(DecodeFailed(-3)))
        response = await served.chat(stream=True)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"


async def test_a_fault_after_the_beginning_gives_nothing_away(serve, answer, caplog):
    async with serve() as served:
        served.service.answers.append(answer("ada").say("Hel").put(ZeroDivisionError("secret")))
        response = await served.chat(stream=True)
        assert (await served.chat()).status_code == 200
    assert b"secret" not in response.content
    assert "secret" in caplog.text


async def test_progress_is_told_once_the_grace_is_over(serve, progress, monkeypatch):
    monkeypatch.setattr(generation, "GRACE_SECONDS", 0.0)
    opened = asyncio.Event()

    async def opening(report):
        report(progress("ada", 0.42))
        await opened.wait()

    async with serve() as served:
        served.service.opening = opening
        exchange = served.chat_exchange(stream=True)
        start = await exchange.start()
        assert start["status"] == 200
        assert dict(start["headers"])[b"x-shardload-model"] == b"ada"
        assert await exchange.frame() == b": loading ada 0.42\n\n"
        opened.set()
        rest = await exchange.rest()
    assert rest.endswith(DONE)
    assert b": loading" not in rest


async def test_an_open_that_fails_after_progress_ends_the_stream(serve, progress, monkeypatch):
    monkeypatch.setattr(generation, "GRACE_SECONDS", 0.0)
    seen = asyncio.Event()

    async def opening(report):
        report(progress("ada", 0.1))
        await seen.wait()
        raise OpenFailed("ada", "bad tensor")

    async with serve() as served:
        served.service.opening = opening
        exchange = served.chat_exchange(stream=True)
        await exchange.start()
        await exchange.frame()
        seen.set()
        rest = await exchange.rest()
    assert events(rest)[0]["error"]["code"] == "model_open_failed"
    assert DONE not in rest


async def test_a_quick_open_is_not_mentioned(serve, progress):
    async def opening(report):
        report(progress("ada", 0.1))
        report(progress("ada", 0.9))

    async with serve() as served:
        served.service.opening = opening
        response = await served.chat(stream=True)
    assert b": loading" not in response.content


async def test_progress_can_be_turned_off(serve, progress, monkeypatch):
    monkeypatch.setattr(generation, "GRACE_SECONDS", 0.0)

    async def opening(report):
        report(progress("ada", 0.1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise OpenFailed("ada", "bad tensor")

    async with serve(progress_comments=False) as served:
        served.service.opening = opening
        assert (await served.chat(stream=True)).status_code == 503


async def test_silence_is_broken(serve, answer, monkeypatch):
    monkeypatch.setattr(generation, "SILENCE_SECONDS", 0.01)
    monkeypatch.setattr(generation, "GRACE_SECONDS", 0.0)
    async with serve() as served:
        served.service.answers.append(slow := answer("ada"))
        exchange = served.chat_exchange(stream=True)
        await exchange.start()
        assert await exchange.frame() == b": keep-alive\n\n"
        assert await exchange.frame() == b": keep-alive\n\n"
        slow.say("late").end()
        assert b"late" in await exchange.rest()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_the_model_opens(serve, stream):
    async with serve() as served:
        served.service.opening = lambda report: asyncio.Event().wait()
        exchange = served.chat_exchange(stream=stream)
        await served.service.starting.wait()
        exchange.leave()
        await served.service.cancelled.wait()
        await exchange.task
        assert exchange.sent.empty()
        assert len(served.stack.in_flight) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_token(serve, answer, stream):
    async with serve() as served:
        served.service.answers.append(silent := answer("ada"))
        exchange = served.chat_exchange(stream=stream)
        await silent.waiting.wait()
        exchange.leave()
        await silent.closed.wait()
        await exchange.task
        assert exchange.sent.empty()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_in_the_middle(serve, answer, stream):
    async with serve() as served:
        served.service.answers.append(endless := answer("ada").say("some"))
        exchange = served.chat_exchange(stream=stream)
        if stream:
            await exchange.start()
            assert b"some" in await exchange.frame()
        else:
            await endless.waiting.wait()
        exchange.leave()
        await endless.closed.wait()
        await exchange.task
        text, _ = served.stack.metrics.exposition("")
        assert b'endpoint="chat_completions",model="ada",status="499"} 1.0' in text


async def test_a_client_that_leaves_while_its_texts_are_embedded(serve):
    async with serve() as served:
        served.service.opening = lambda report: asyncio.Event().wait()
        exchange = served.exchange("/v1/embeddings", input="x")
        await served.service.starting.wait()
        exchange.leave()
        await exchange.task
        assert served.service.cancelled.is_set()
        assert exchange.sent.empty()


async def test_a_reader_that_does_not_read_holds_nobody_up(serve, answer):
    async with serve() as served:
        served.service.answers.append(first := answer("ada").say("some", "more"))
        exchange = served.chat_exchange(stream=True)
        exchange.reading.clear()
        await first.waiting.wait()
        assert (await served.chat()).status_code == 200
        exchange.leave()
        await first.closed.wait()
        await exchange.task


async def test_a_reader_that_stopped_reading_gives_back_what_it_holds(serve, answer, monkeypatch):
    monkeypatch.setattr(streaming, "READER_SECONDS", 0.01)
    async with serve() as served:
        served.service.answers.append(endless := answer("ada").say("some"))
        exchange = served.chat_exchange(stream=True)
        exchange.reading.clear()
        with anyio.fail_after(10):
            await endless.closed.wait()
            await exchange.task
        assert exchange.sent.empty()
        assert len(served.stack.in_flight) == 0
        text, _ = served.stack.metrics.exposition("")
        assert b'endpoint="chat_completions",model="ada",status="499"} 1.0' in text


async def test_nothing_follows_a_piece_that_was_not_read(monkeypatch):
    monkeypatch.setattr(streaming, "READER_SECONDS", 0.01)
    sending, sent = asyncio.Event(), []

    async def send(message):
        if not sending.is_set():
            sending.set()
            await asyncio.Event().wait()
        sent.append(message)

    stream = streaming.EventStream(send, headers={}, grace_seconds=0.0, silence_seconds=0.0)
    stream.start_heartbeat()
    with anyio.fail_after(10):
        await sending.wait()
        with pytest.raises(ClientLeft):
            await stream.write(b"late")
        with pytest.raises(ClientLeft):
            await stream.end()
    assert sent == []


async def test_shutting_down_lets_answers_end_and_refuses_new_ones(serve, answer, error_of):
    async with serve() as served:
        served.service.answers.append(running := answer("ada").say("some"))
        exchange = served.chat_exchange(stream=True)
        await exchange.start()
        served.stack.begin_shutdown()
        refused = await served.chat()
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "shutting_down"
        assert (await served.client.get("/health")).status_code == 503
        running.end()
        assert (await exchange.rest()).endswith(DONE)


@pytest.mark.parametrize("stream", [True, False])
async def test_answers_that_outlast_the_deadline_are_failed(serve, answer, stream):
    async with serve(shutdown_seconds=0) as served:
        served.service.answers.append(endless := answer("ada").say("some"))
        exchange = served.chat_exchange(stream=stream)
        if stream:
            await exchange.start()
        else:
            await endless.waiting.wait()
        await served.stack.drain()
        if not stream:
            assert (await exchange.start())["status"] == 503
        rest = await exchange.rest()
        assert str(ShuttingDown()).encode() in rest
        assert DONE not in rest
        assert endless.closed.is_set()
