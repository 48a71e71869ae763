from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from service_fakes import FakeManager, count_wakes

import shardload
from shardload.errors import HandleClosed, ModelUnavailable

Pair = tuple[shardload.Manager, FakeManager]


def test_pieces_come_as_they_are_made(fake_models: Pair) -> None:
    models, manager = fake_models
    generation = models.generate("small", "Hi", stream=True, temperature=0)
    pieces = iter(generation)
    assert next(pieces) == "<"
    assert generation.finish_reason is None
    assert len(manager.leases) == 1
    assert "".join(pieces) == "Hi>"
    assert generation.finish_reason == "stop"
    assert manager.leases == []
    assert list(generation) == ["<", "H", "i", ">"]
    assert generation.text == str(generation) == "<Hi>"
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (3, 4)
    assert (generation.model, generation.rule) == ("small", "name")


def test_pieces_are_taken_one_by_one(fake_models: Pair) -> None:
    models, manager = fake_models
    generation = models.generate("small", "Hi", stream=True, temperature=0)
    assert next(generation) == "<"
    assert len(manager.leases) == 1
    assert next(generation) == "H"
    assert list(generation) == list(generation) == ["i", ">"]
    assert [next(generation), next(generation), next(generation, None), next(generation, None)] == [
        "i", ">", None, None
    ]  # fmt: skip
    assert generation.text == "<Hi>"
    assert manager.leases == []


def test_the_whole_text_is_waited_for(fake_models: Pair) -> None:
    models, manager = fake_models
    generation = models.generate("small", "Hi", temperature=0, top_logprobs=0)
    assert manager.leases == []
    assert generation.text == "<Hi>"
    assert [entry.text for entry in generation.logprobs] == ["<", "H", "i", ">"]
    assert generation.finish is not None
    assert generation.finish.timings.decode_seconds >= 0
    assert repr(generation) == "<Generation by 'small': '<Hi>'>"


def test_a_whole_text_crosses_threads_once(fake_models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    models, _ = fake_models
    runtime, crossings = models._runtime, []
    call = runtime.call

    def counted(*arguments: Any) -> Any:
        crossings.append(arguments)
        return call(*arguments)

    monkeypatch.setattr(runtime, "call", counted)
    assert models.generate("small", "Hi", temperature=0).text == "<Hi>"
    assert len(crossings) == 2, "its start and its text"


def test_the_loop_sleeps_while_a_whole_text_is_made(
    fake_models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, manager = fake_models
    manager.reply = lambda prompt: "x" * 400
    models.generate("small", "Hi", temperature=0)
    loop, runner = models._runtime.call(asyncio.get_running_loop), manager.runners["small", "generate"]
    wakes = count_wakes(loop, runner, monkeypatch)
    assert models.generate("small", "Hi", temperature=0).text == "x" * 400
    assert 0 < len(wakes) < 15


def test_leaving_early_stops_it(fake_models: Pair) -> None:
    models, manager = fake_models
    manager.reply = lambda prompt: "x" * 400
    with models.generate("small", "Hi", stream=True, temperature=0) as generation:
        for piece in generation:
            assert piece == "x"
            break
    assert manager.leases == []
    assert list(generation) == ["x"]
    assert generation.finish_reason is None
    generation.close()


def test_one_that_nobody_has_any_more_is_stopped(fake_models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    models, manager = fake_models
    manager.reply = lambda prompt: "x" * 400
    runtime, ended = models._runtime, threading.Event()
    end = runtime.end

    def noted(answer: Any) -> None:
        end(answer)
        ended.set()

    monkeypatch.setattr(runtime, "end", noted)
    generations = [models.generate("small", "Hi", stream=True, temperature=0)]
    assert next(iter(generations[0])) == "x"
    with pytest.warns(ResourceWarning, match="neither read to its end nor closed"):
        generations.clear()
    assert ended.wait(30)
    assert manager.leases == []


def test_closing_the_models_ends_what_runs(fake_models: Pair) -> None:
    models, manager = fake_models
    generation = models.generate("small", "Hi", stream=True, temperature=0)
    models.close()
    assert manager.leases == []
    with pytest.raises(HandleClosed):
        list(generation)
    generation.close()


def test_closing_the_models_wakes_who_waits(fake_models: Pair) -> None:
    models, manager = fake_models
    models.generate("small", "Hi")
    runner = manager.runners["small", "generate"]
    runner.gate.clear()
    runner.entered.clear()
    generation = models.generate("small", "Hi", stream=True)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            generation.read()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert runner.entered.wait(30)
    models.close()
    thread.join()
    runner.gate.set()
    assert [type(error) for error in errors] == [HandleClosed]
    assert manager.leases == []


def test_a_model_taken_away_is_an_error(fake_models: Pair) -> None:
    models, manager = fake_models
    models.generate("small", "Hi")
    runner, engine = manager.runners["small", "generate"], manager.engines["small", "generate"]
    runner.gate.clear()
    generation = models.generate("small", "Hi", stream=True)
    gone = manager.lane.detach(engine)
    runner.gate.set()
    with pytest.raises(ModelUnavailable):
        list(generation)
    gone.result()
    assert manager.leases == []


def test_left_lying_is_told(fake_models: Pair) -> None:
    models, _ = fake_models
    generation = models.generate("small", "Hi", stream=True, temperature=0)
    with pytest.warns(ResourceWarning, match="neither read to its end nor closed"):
        generation.__del__()
    generation.close()


def test_threads_generate_at_once(fake_models: Pair) -> None:
    models, manager = fake_models
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = models.generate("small", str(number), temperature=0).text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"<{number}>" for number in range(8)}
    assert manager.leases == []
