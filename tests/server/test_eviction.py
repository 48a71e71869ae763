"""The openai client with more models than there is room for; greedy text is llama-cpp-python's own."""

from __future__ import annotations

import shutil
import threading

import httpx
import llama_cpp
import openai
import pytest

from shardload.config import Config, EngineConfig, MemoryConfig, ServerConfig
from shardload.demo import demo_folder
from shardload_native.amx import avoid_traps
from shardload_native.library import load

pytestmark = pytest.mark.real

NAMES = ("first", "second", "third", "fourth")
PROMPT = "Once upon a time"
TOKENS = 40
CTX_TOKENS = 16384
"""So many that the models take about the same, and that no allocator's habits matter beside it."""


@pytest.fixture
def folder(tmp_path):
    """Four files of their own: copies of two demo models, each with other bytes at its end."""
    for index, name in enumerate(NAMES):
        copy = tmp_path / f"{name}.gguf"
        shutil.copyfile(demo_folder() / f"{('fable', 'pirate')[index % 2]}.gguf", copy)
        with copy.open("ab") as file:
            file.write(bytes([index]))
    return tmp_path


def configured(folder, budget_bytes):
    return Config(
        folders=(str(folder),),
        server=ServerConfig(port=0),
        memory=MemoryConfig(budget=budget_bytes),
        engine=EngineConfig(threads=1, ctx=CTX_TOKENS),
    )


def states(url):
    models = httpx.get(f"{url}/models").json()["models"]
    return {model["name"]: model for model in models}


def room_for_three(folder, serving_files, say):
    """A budget that four do not fit into, by what the server itself says that each takes."""
    with serving_files(configured(folder, 2**30)) as url:
        for name in NAMES:
            say(url, name)
        taken = [each["private_bytes"] + each["size_bytes"] for each in states(url).values()]
    # In the middle, since an open is planned with a little more or less than it takes in the end.
    return sum(taken) - min(taken) // 2


def test_three_stream_at_once_and_a_fourth_takes_the_place_of_one(folder, serving_files, say):
    budget = room_for_three(folder, serving_files, say)
    with (
        serving_files(configured(folder, budget)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        together = threading.Barrier(3)
        heard: dict[str, str] = {}

        def listen(name, meet=None):
            stream = client.completions.create(
                model=name, prompt=PROMPT, temperature=0, max_tokens=TOKENS, stream=True
            )
            text = next(stream).choices[0].text
            if meet is not None:
                # Each has its first token before any goes on to its last.
                meet.wait(60)
            heard[name] = text + "".join(chunk.choices[0].text for chunk in stream)

        threads = [threading.Thread(target=listen, args=(name, together)) for name in NAMES[:3]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(heard) == set(NAMES[:3])
        assert {name for name, state in states(url).items() if state["state"] == "open"} == set(NAMES[:3])
        for name in ("first", "third"):
            listen(name)
        listen("fourth")
        now = {name: state["state"] for name, state in states(url).items()}
        # It may take two parked conversations for the room of one model.
        away = {name for name, state in now.items() if state != "open"}
        assert away < set(NAMES) - {"fourth"}
        assert away
        assert {now[name] for name in away} <= {"parked", "closed"}
        for name in away:
            listen(name)
    expected = {name: reference(folder / f"{name}.gguf") for name in NAMES}
    assert heard == expected
    assert expected["first"] == expected["third"] != expected["second"]


def reference(path):
    """What llama-cpp-python says to the prompt by itself, greedily."""
    avoid_traps(load())
    llama = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    try:
        answer = llama.create_completion(PROMPT, max_tokens=TOKENS, temperature=0.0, repeat_penalty=1.0)
        return answer["choices"][0]["text"]
    finally:
        llama.close()
