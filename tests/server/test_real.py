"""The whole path, from the vendor's client over a socket to llama.cpp and the demo models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from shardload.config import Config, EngineConfig, ServerConfig
from shardload.demo import demo_folder

pytestmark = pytest.mark.real

VOICES = ("fable", "pirate")
MESSAGES = [{"role": "user", "content": "Hello, who are you?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def url(tmp_path_factory, serving_files):
    """A server of the demo models, and of a copy of one in a second folder."""
    copies = tmp_path_factory.mktemp("copies")
    (copies / "second.gguf").write_bytes((demo_folder() / "pirate.gguf").read_bytes())
    engine = EngineConfig(threads=1, queue=2)
    folders = (str(demo_folder()), str(copies))
    with serving_files(Config(folders=folders, server=ServerConfig(port=0), engine=engine)) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def listen(client, model, **options):
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, stream=True, **options
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_three_models_at_once_say_what_each_says_alone(client):
    def ask(model):
        if model == "embed":
            return client.embeddings.create(model=model, input="a boat").data[0].embedding
        return listen(client, model)

    models = (*VOICES, "embed")
    alone = [ask(model) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(ask, models))
    assert together[:2] == alone[:2]
    assert alone[0] != alone[1]
    assert together[2] == pytest.approx(alone[2], abs=1e-5)


def test_a_whole_answer_is_the_streamed_one(client):
    whole = client.chat.completions.create(model="pirate", messages=MESSAGES, temperature=0)
    assert whole.choices[0].message.content == listen(client, "pirate")
    assert whole.choices[0].finish_reason == "stop"


def test_a_seed_repeats_itself(client):
    def ask(seed):
        answer = client.chat.completions.create(
            model="fable", messages=STORY, temperature=1.2, seed=seed, n=2, max_tokens=48
        )
        return [choice.message.content for choice in answer.choices]

    first = ask(7)
    assert ask(7) == first
    assert first[0] != first[1]


def test_logprobs_belong_to_the_text(client):
    answer = client.chat.completions.create(
        model="pirate", messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    raw = b"".join(bytes(token.bytes) for token in tokens)
    assert raw.decode() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    assert all(token.top_logprobs[0].token == token.token for token in tokens)


def test_a_stop_string_is_not_told(client):
    text = listen(client, "pirate")
    middle = text[len(text) // 2 :][:4]
    assert listen(client, "pirate", stop=[middle]) == text[: text.index(middle)]


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="pirate", prompt="ahoy " * 3000)
    assert caught.value.code == "context_length_exceeded"
    body = caught.value.body
    assert str(body["prompt_tokens"]) in caught.value.message
    assert str(body["context_tokens"]) in caught.value.message
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="pirate", prompt="ahoy " * 3000, stream=True)


def test_a_chat_with_a_model_for_embeddings(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="embed", messages=MESSAGES)


def test_an_automatic_choice_says_who_it_was(client):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=MESSAGES, max_tokens=1)
    assert raw.headers["x-shardload-rule"] == "auto"
    assert raw.headers["x-shardload-model"] == raw.parse().model


def test_a_name_is_given_another_file_and_back(url, client, tmp_path):
    def load(path):
        return httpx.post(f"{url}/models/load", json={"model": "fable", "path": str(path)}, timeout=60)

    fable, pirate = listen(client, "fable"), listen(client, "pirate")
    with httpx.Client() as reader:
        known = {model["name"]: model["path"] for model in reader.get(f"{url}/models").json()["models"]}
    assert load(known["second"]).status_code == 200
    assert listen(client, "fable") == pirate
    refused = load(tmp_path / "elsewhere.gguf")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "path")
    assert load("/etc/passwd").status_code == 400
    assert load(known["fable"]).status_code == 200
    assert listen(client, "fable") == fable


def test_models_close_and_open_by_hand(url):
    def state(action, **fields):
        answer = httpx.post(f"{url}/models/{action}", json={"model": "second", **fields}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert state("load")["state"] == "open"
    assert state("pin", pinned=True)["pinned"] is True
    assert state("pin", pinned=False)["pinned"] is False
    assert state("unload")["state"] == "closed"


def test_what_was_done_is_measured(url, client):
    listen(client, "pirate")
    text = httpx.get(f"{url}/metrics").text
    for name in (
        "completion_tokens_total",
        "first_token_seconds_count",
        "model_resident_bytes",
        "model_steps_total",
    ):
        lines = [line for line in text.splitlines() if line.startswith(f'shardload_{name}{{model="pirate"}}')]
        assert float(lines[0].split()[1]) > 0
