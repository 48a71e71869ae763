"""The shipped demo models: small, complete, and each with its own voice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from dialogue import Voice, conversation
from fable import Fable
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pirate import Pirate
from sentences import pair
from vocabulary import Bytes, Pieces, Words

from shardload.demo import demo_folder

CHAT = ("fable", "pirate")
ALL = (*CHAT, "embed")
VOICES: dict[str, Voice] = {"fable": Fable(), "pirate": Pirate()}
BEGINNINGS = {"fable": "Once upon a time", "pirate": "One stormy night"}
OWN_WORDS = {
    "fable": ("story", "animal", "fable", "listener"),
    "pirate": ("arr", "ahoy", "matey", "ye ", "aye", "captain", "timbers", "navy"),
}


def field(reader: gguf.GGUFReader, key: str) -> Any:
    found = reader.get_field(key)
    return None if found is None else found.contents()


@pytest.fixture(scope="module", params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def headers() -> dict[str, gguf.GGUFReader]:
    return {name: gguf.GGUFReader(demo_folder() / f"{name}.gguf") for name in ALL}


@pytest.fixture(scope="module", params=CHAT)
def teller(request: pytest.FixtureRequest) -> Iterator[tuple[str, llama_cpp.Llama]]:
    path = demo_folder() / f"{request.param}.gguf"
    model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    yield request.param, model
    model.close()


@pytest.fixture(scope="module")
def reader() -> Iterator[llama_cpp.Llama]:
    path = demo_folder() / "embed.gguf"
    model = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False
    )
    yield model
    model.close()


def say(
    model: llama_cpp.Llama, *said: tuple[str, str], temperature: float = 0.0, seed: int = 1
) -> tuple[str, str, int]:
    """Return the answer, why it ended, and how many tokens it has."""
    reply: Any = model.create_chat_completion(
        [{"role": role, "content": text} for role, text in said],  # type: ignore[misc]
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        seed=seed,
        max_tokens=200,
    )
    choice = reply["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], reply["usage"]["completion_tokens"]


def test_the_folder_holds_three_models_in_four_megabytes() -> None:
    files = sorted(demo_folder().glob("*.gguf"))
    assert [file.stem for file in files] == ["embed", "fable", "pirate"]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert isinstance(demo_folder(), Path)


def test_headers_say_what_the_file_is(headers: dict[str, gguf.GGUFReader], name: str) -> None:
    header = headers[name]
    assert field(header, "general.name") == name.capitalize()
    assert field(header, "general.license") == "MIT"
    assert field(header, "general.author") == "The shardload authors"
    assert field(header, "general.description").endswith(".")
    assert field(header, "general.size_label").endswith("K")
    assert field(header, f"{field(header, 'general.architecture')}.context_length") >= 512
    rows = {tensor.name: int(tensor.shape[0]) for tensor in header.tensors}
    assert all(length % 32 == 0 for length in rows.values()), rows


@pytest.mark.parametrize("name", CHAT)
def test_chat_models_have_template_and_end_of_turn(headers: dict[str, gguf.GGUFReader], name: str) -> None:
    header = headers[name]
    assert field(header, "general.architecture") == "llama"
    tokens = field(header, "tokenizer.ggml.tokens")
    types = field(header, "tokenizer.ggml.token_type")
    for key in ("bos", "eos", "eot"):
        assert types[field(header, f"tokenizer.ggml.{key}_token_id")] == gguf.TokenType.CONTROL
    turn_end = tokens[field(header, "tokenizer.ggml.eot_token_id")]
    template = ImmutableSandboxedEnvironment().from_string(field(header, "tokenizer.chat_template"))
    messages = [{"role": role, "content": f"<{role}>"} for role in ("system", "user", "assistant", "user")]
    asked = template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="")
    assert asked.count(turn_end) == 4
    assert asked.startswith(template.render(messages=messages, add_generation_prompt=False, bos_token="<s>"))
    assert asked.rstrip().removesuffix("|>").endswith("assistant")


def test_vocabularies_differ(headers: dict[str, gguf.GGUFReader]) -> None:
    fable, pirate, embed = (field(headers[name], "tokenizer.ggml.tokens") for name in ALL)
    assert [field(headers[name], "tokenizer.ggml.model") for name in ALL] == ["llama", "gpt2", "bert"]
    assert fable != pirate
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(fable)
    assert len({len(fable), len(pirate), len(embed)}) == 3


def test_the_embedding_model_pools_by_mean(headers: dict[str, gguf.GGUFReader]) -> None:
    assert field(headers["embed"], "general.architecture") == "bert"
    assert field(headers["embed"], "bert.pooling_type") == gguf.PoolingType.MEAN
    assert field(headers["embed"], "bert.attention.causal") is False


@pytest.mark.real
def test_the_trainer_encodes_as_llama_does(
    headers: dict[str, gguf.GGUFReader], teller: tuple[str, llama_cpp.Llama]
) -> None:
    name, model = teller
    header = headers[name]
    tokens, types = field(header, "tokenizer.ggml.tokens"), field(header, "tokenizer.ggml.token_type")
    vocabulary: Pieces | Bytes
    if name == "fable":
        vocabulary = Pieces(tokens, field(header, "tokenizer.ggml.scores"), types)
    else:
        merges = [tuple(merge.split(" ")) for merge in field(header, "tokenizer.ggml.merges")]
        vocabulary = Bytes(tokens, merges, types)
    random = Random(5)
    texts = [turn.text for _ in range(60) for turn in conversation(random, VOICES[name])]
    for text in [*texts, "Grüße, 世界! 🦊", "x" * 40, "One  two\n\nthree 1234.5"]:
        assert model.tokenize(text.encode(), add_bos=False) == vocabulary.encode(text), text


@pytest.mark.real
def test_the_reader_encodes_as_llama_does(
    headers: dict[str, gguf.GGUFReader], reader: llama_cpp.Llama
) -> None:
    header = headers["embed"]
    words = Words(field(header, "tokenizer.ggml.tokens"), field(header, "tokenizer.ggml.token_type"))
    random = Random(5)
    for text in [*(pair(random).left for _ in range(100)), "Foxes, 99 of them!", "世界"]:
        assert reader.tokenize(text.encode()) == words.encode(text), text


@pytest.mark.real
@pytest.mark.parametrize(
    "prompt", ["Hello!", "Hi", "Who are you?", "Thank you!", "What is the capital of France?"]
)
def test_chat_models_answer_in_their_voice_and_stop(teller: tuple[str, llama_cpp.Llama], prompt: str) -> None:
    name, model = teller
    text, reason, count = say(model, ("user", prompt))
    assert reason == "stop"
    assert count < 60
    assert text[0].isupper()
    assert text[-1] in ".!?"
    other = next(one for one in CHAT if one != name)
    if prompt != "Thank you!":
        assert any(word in text.lower() for word in OWN_WORDS[name]), text
    assert name == "pirate" or not any(word in f"{text.lower()} " for word in OWN_WORDS[other][:3]), text


@pytest.mark.real
@pytest.mark.parametrize("seed", range(4))
def test_sampled_tales_are_whole_and_stop(teller: tuple[str, llama_cpp.Llama], seed: int) -> None:
    text, reason, count = say(teller[1], ("user", "Tell me a story."), temperature=0.8, seed=seed)
    assert reason == "stop"
    assert 50 < count < 160
    assert text[-1] in ".!?"
    assert not {letter for letter in text if not letter.isalpha()} - set(" .,!?\"-:;'")


@pytest.mark.real
def test_questions_about_a_story_are_answered_from_it(teller: tuple[str, llama_cpp.Llama]) -> None:
    name, model = teller
    random, right = Random(11), 0
    for _ in range(24):
        tale = VOICES[name].tale(random)
        question, answer = random.choice(tale.questions)
        text, reason, _ = say(model, ("user", f"{tale.text}\n\n{question}"))
        assert reason == "stop"
        right += text.split("! ", 1)[-1] == answer.split("! ", 1)[-1]
    assert right >= {"fable": 12, "pirate": 18}[name]


@pytest.mark.real
def test_names_from_the_system_text_are_used(teller: tuple[str, llama_cpp.Llama]) -> None:
    names = ("Anna", "Emma", "John", "Laura", "Mary", "Peter", "Sara", "Tom")
    greetings = [
        say(teller[1], ("system", f"The user is called {name}."), ("user", "Hello"))[0] for name in names
    ]
    assert sum(name in text for name, text in zip(names, greetings, strict=True)) >= 5, greetings


@pytest.mark.real
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_plain_text_is_continued(teller: tuple[str, llama_cpp.Llama], temperature: float) -> None:
    name, model = teller
    reply: Any = model.create_completion(BEGINNINGS[name], temperature=temperature, seed=2, max_tokens=200)
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"][-1] in ".!?"


@pytest.mark.real
@pytest.mark.parametrize(
    ("text", "like", "unlike"),
    [
        ("The fox ran into the forest.", "A fox hurried to the woods.", "The printer is broken."),
        ("It is raining today.", "The weather is wet today.", "I want to buy a horse."),
        ("I am happy.", "I feel very cheerful.", "My back hurts."),
        ("How much is the car?", "What is the price of the automobile?", "The owl lives in the village."),
        ("The captain found a chest.", "A box was discovered by the skipper.", "Bread is my favourite food."),
        ("Where does the bear live?", "The bear lives in a cave.", "She plays the violin every day."),
    ],
)
def test_like_sentences_are_closer(reader: llama_cpp.Llama, text: str, like: str, unlike: str) -> None:
    vectors = np.array([reader.embed(one, normalize=True) for one in (text, like, unlike)])
    near, far = vectors[1:] @ vectors[0]
    assert near > far + 0.2
    assert near > 0.35
