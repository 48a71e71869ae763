"""The vendor's own client over a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading

import msgspec
import openai
import pytest

from shardload.errors import OpenFailed, Overloaded, PromptTooLong

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def connect(host):
    """A server and a client of it."""
    clients = []

    def make(key="none", **server):
        hosted = host(**server)
        clients.append(openai.OpenAI(base_url=f"{hosted.url}/v1", api_key=key, max_retries=0, timeout=30))
        return hosted, clients[-1]

    yield make
    for client in clients:
        client.close()


def test_chat_whole_and_streaming(connect):
    _, client = connect()
    whole = client.chat.completions.create(model="ada", messages=MESSAGES)
    assert whole.choices[0].message.content == "Hello there"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 2
    with client.chat.completions.create(
        model="ada", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


def test_completions_embeddings_and_models(connect):
    _, client = connect()
    assert client.completions.create(model="ada", prompt="x").choices[0].text == "Hello there"
    # The client asks for base64 by itself and decodes it.
    assert client.embeddings.create(model="ada", input="x").data[0].embedding == pytest.approx([0.6, 0.8])
    assert [model.id for model in client.models.list()] == ["ada", "grace", "org/model"]
    assert client.models.retrieve("org/model").id == "org/model"


def test_errors_are_the_clients_own(connect):
    hosted, client = connect()
    with pytest.raises(openai.NotFoundError, match="grace"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="ada", messages=MESSAGES, temperature=-1)
    assert wrong.value.param == "temperature"
    hosted.served.service.failure = PromptTooLong(600, 512)
    with pytest.raises(openai.BadRequestError, match="600") as too_long:
        client.chat.completions.create(model="ada", messages=MESSAGES, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    hosted.served.service.failure = Overloaded("ada", 64, 1.5)
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="ada", messages=MESSAGES)
    assert limited.value.response.headers["retry-after"] == "2"
    hosted.served.service.failure = OpenFailed("ada", "bad tensor")
    with pytest.raises(openai.InternalServerError, match="bad tensor"):
        client.embeddings.create(model="ada", input="x")


def test_a_wrong_key(connect):
    _, client = connect(key="wrong", api_keys=("right",))
    with pytest.raises(openai.AuthenticationError, match="not valid"):
        client.models.list()


def test_an_error_in_the_middle_of_a_stream(connect, answer):
    hosted, client = connect()
    hosted.call(
        lambda: hosted.served.service.answers.append(answer("ada").say("Hel").put(OpenFailed("ada", "gone")))
    )
    texts: list[str | None] = []
    stream = client.chat.completions.create(model="ada", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="gone"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "Hel"]


def test_progress_is_no_event(connect, progress):
    hosted, client = connect()
    opened = hosted.call(asyncio.Event)

    async def opening(report):
        report(progress("ada", 0.5))
        await opened.wait()

    hosted.served.service.opening = opening
    # The headers come before the model is open: with the first comment.
    stream = client.chat.completions.create(model="ada", messages=MESSAGES, stream=True)
    hosted.call(opened.set)
    assert [chunk.choices[0].delta.content for chunk in stream] == ["", "Hello", " there", None]


def test_three_models_at_once(connect, answer):
    hosted, client = connect()
    names = ["ada", "grace", "org/model"]
    barrier = threading.Barrier(len(names))
    answers = {name: hosted.call(lambda name=name: answer(name).say(f"I am {name}")) for name in names}

    async def start(plan, progress=None):
        return answers[plan.request.model]

    hosted.served.service.start = start
    heard = {}

    def listen(name):
        stream = client.chat.completions.create(model=name, messages=MESSAGES, stream=True)
        parts = []
        for chunk in stream:
            parts.append(chunk.choices[0].delta.content or "")
            if len(parts) == 2:
                # Nobody ends before all have begun.
                barrier.wait(30)
                hosted.call(lambda: answers[name].end())
        heard[name] = "".join(parts)

    threads = [threading.Thread(target=listen, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == {name: f"I am {name}" for name in names}


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_closes_cancels_the_answer(host, answer, stream):
    hosted = host()
    endless = hosted.call(lambda: answer("ada").say("some"))
    hosted.served.service.answers.append(endless)
    body = msgspec.json.encode({"model": "ada", "messages": MESSAGES, "stream": stream})
    port = int(hosted.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        hosted.call(endless.waiting.wait)
    hosted.call(endless.closed.wait)
