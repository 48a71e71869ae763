from __future__ import annotations

import doctest
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_fakes import FakeManager

import shardload
from shardload.demo import demo_folder
from shardload.errors import (
    ConfigError,
    GGUFError,
    HandleClosed,
    ModelNotFound,
    PromptTooLong,
    RequestError,
)

Pair = tuple[shardload.Manager, FakeManager]


def test_everything_that_is_exported_is_there_and_sorted() -> None:
    assert shardload.__all__ == sorted(shardload.__all__)
    assert all(hasattr(shardload, name) for name in shardload.__all__)


# Over fakes: what the API does with its arguments.


def test_chat_takes_messages_or_a_text(fake_models: Pair) -> None:
    models, _ = fake_models
    assert models.chat("small", "Hi", temperature=0).text == "<Hi>"
    turns = [{"role": "user", "content": "A"}, shardload.Message("assistant", "B")]
    assert models.chat("small", turns, temperature=0).text == "<A\nB>"


def test_prompts_are_text_or_tokens(fake_models: Pair) -> None:
    models, _ = fake_models
    assert models.generate("small", "Hi", temperature=0, stop="i").text == "<H"
    assert models.generate("small", list(b"Ho"), temperature=0, max_tokens=2).text == "<H"


def test_one_vector_or_many(fake_models: Pair) -> None:
    models, _ = fake_models
    assert models.embed("vectors", "a").shape == (8,)
    assert models.embed("vectors", ["a"]).shape == (1, 8)
    assert models.embed("vectors", ["a", list(b"bc")], dimensions=3).shape == (2, 3)


def test_tokens_there_and_back(fake_models: Pair) -> None:
    models, manager = fake_models
    assert models.tokenize("small", "Hi", special=False) == [72, 105]
    assert models.detokenize("small", models.tokenize("small", "Hi")) == "Hi"
    assert manager.leases == []


def test_one_model_of_several(fake_models: Pair) -> None:
    models, _ = fake_models
    with models.model("small") as model:
        assert (model.name, model.ctx_tokens) == ("small", 512)
        assert model.generate("Hi", temperature=0).text == "<Hi>"
        assert model.chat("Hi", temperature=0).text == "<Hi>"
        assert model.tokenize("Hi", special=False) == [72, 105]
        assert model.detokenize([72, 105]) == "Hi"
    assert models.model("vectors").embed(["a"]).shape == (1, 8)
    assert models.models == ("small", "vectors")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.generate("nobody", "Hi"), ModelNotFound, "available: small, vectors"),
        (lambda m: m.model("nobody"), ModelNotFound, "nobody"),
        (lambda m: m.generate("small", "Hi", temprature=0), RequestError, "there is no option 'temprature'"),
        (lambda m: m.generate("small", "Hi", temperature=-1), RequestError, "temperature must be at least 0"),
        (lambda m: m.generate("small", ""), RequestError, None),
        (lambda m: m.generate("small", "x" * 600), PromptTooLong, "601 tokens and the context holds 512"),
        (lambda m: m.chat("small", []), RequestError, "at least one message"),
        (lambda m: m.chat("small", [{"role": "user"}, {"role": "x"}]), RequestError, r"messages\[1\].role"),
        (lambda m: m.chat("small", "Hi", tools=[{}]), RequestError, "'small' takes no tools"),
        (lambda m: m.chat("vectors", "Hi"), RequestError, "'vectors' makes embeddings only"),
        (lambda m: m.embed("vectors", []), RequestError, "input is empty"),
        (lambda m: m.embed("vectors", "a", dimensions=9), RequestError, "dimensions is 9"),
    ],
)
def test_errors_say_what_is_wrong(
    fake_models: Pair, call: Callable[[Any], Any], error: type[Exception], words: str | None
) -> None:
    models, manager = fake_models
    if words is None:
        assert call(models).usage.prompt_tokens == 1
    else:
        with pytest.raises(error, match=words):
            call(models)
    assert manager.leases == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget": "lots"}, "'lots' is not a size"),
        ({"budget": 0}, "out of range"),
        ({"keep_alive": "soon"}, "'soon' is not a duration"),
        ({"ctx": -1}, "ctx"),
        ({"slots": 0}, "parallel"),
        ({"threads": "two"}, "threads"),
        ({"config": "/nowhere/shardload.toml"}, "No such file"),
    ],
)
def test_managers_that_cannot_be(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        shardload.Manager(demo_folder(), **arguments)


def test_nothing_works_after_close(fake_models: Pair) -> None:
    models, _ = fake_models
    models.close()
    models.close()
    with pytest.raises(HandleClosed):
        models.generate("small", "Hi")


# Over llama.cpp and the demo models.


@pytest.mark.real
def test_the_examples_in_the_documentation() -> None:
    folder = demo_folder()
    for module in (shardload, shardload.api):
        names = {"shardload": shardload, "models": folder, "path": folder / "fable.gguf"}
        done = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
        assert done.failed == 0
        assert done.attempted > 0


@pytest.mark.real
def test_a_model_of_its_own() -> None:
    with shardload.open(demo_folder() / "pirate.gguf", ctx=512, slots=2, threads=1) as model:
        assert (model.name, model.ctx_tokens) == ("pirate", 512)
        first = model.chat("Hello, who are you?", temperature=0)
        assert first.finish_reason == "stop"
        pieces = list(model.chat("Hello, who are you?", temperature=0, stream=True))
        assert len(pieces) > 3
        assert "".join(pieces) == first.text
        assert model.detokenize(model.tokenize("Yo ho ho!")).strip() == "Yo ho ho!"
        drawn = [model.generate("One", seed=5, max_tokens=12).text for _ in range(2)]
        assert drawn[0] == drawn[1]
        with pytest.raises(PromptTooLong, match="context holds 512"):
            model.generate([5] * 600)
    with pytest.raises(HandleClosed):
        model.generate("One")


@pytest.mark.real
def test_similar_sentences_are_near() -> None:
    with shardload.open(demo_folder() / "embed.gguf") as model:
        boat, ship, cake = model.embed(["a small boat", "a little ship", "a sweet cake"])
        assert np.isclose(np.linalg.norm(boat), 1)
        assert boat @ ship > boat @ cake


@pytest.mark.real
def test_several_models_under_one_budget() -> None:
    with shardload.Manager([demo_folder()], budget="1GiB", keep_alive=-1) as models:
        assert models.models == ("embed", "fable", "pirate")
        models.load("fable", pin=True)
        voices = {
            name: models.chat(name, "Hello, who are you?", temperature=0).text for name in ("fable", "pirate")
        }
        assert voices["fable"] != voices["pirate"]
        assert models.chat("auto", "Hello!", temperature=0).rule == "auto"
        states = {status.name: (status.state, status.pinned) for status in models.status()}
        assert states == {"embed": ("closed", False), "fable": ("open", True), "pirate": ("open", False)}
        models.pin("fable", False)
        models.unload("fable")
        assert {status.name: status.state for status in models.status()}["fable"] == "closed"
        assert dict(models.problems) == {}


@pytest.mark.real
def test_json_is_held_to() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    with shardload.open(demo_folder() / "fable.gguf") as model:
        import json

        said = json.loads(model.chat("Who are you?", response_format=form, temperature=0, max_tokens=80).text)
        assert isinstance(said["name"], str)
        assert isinstance(said["age"], int)


@pytest.mark.real
@pytest.mark.parametrize(
    "content", [None, b"", b"GGUF", b"not a model at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64]
)
def test_files_that_are_no_models(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GGUFError) as caught:
        shardload.open(path)
    assert "broken.gguf" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (content is None)
    assert caplog.messages == []


def test_files_that_nobody_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")

    # Who runs the tests may be allowed to read everything.
    def refuse(*_arguments: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"secret\.gguf: no permission to read it") as caught:
        shardload.open(path)
    assert isinstance(caught.value, GGUFError)
    assert (caught.value.errno, caplog.messages) == (13, [])


def test_a_folder_is_for_a_manager(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"shardload\.Manager serve all models"):
        shardload.open(tmp_path)
