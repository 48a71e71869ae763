"""Parked conversations of the demo models say what they would have said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from turned_lane import GREEDY, Reader

from shardload.config import KvType
from shardload.demo import demo_folder
from shardload.engine import Engine, GenerationRequest, Lane, Parking, ParkingLot
from shardload.llama import Context, ContextParams, Model

pytestmark = pytest.mark.real
TEXT = "Once upon a time there was a fox who lived by the sea. " * 8
QUESTION = " And then the fox said:"
TOKENS = 40


@contextmanager
def served(lane: Lane, model: Model, parking: Parking | None, kv_type: KvType = "f16") -> Iterator[Engine]:
    params = ContextParams(
        ctx_tokens=1024, slots=2, threads=1, threads_batch=1, batch_tokens=128, kv_type=kv_type
    )
    with Context(model, params) as context:
        engine = lane.attach(context, name="model", parking=parking)
        yield engine
        lane.detach(engine).result(30)


def say(engine: Engine, prompt: list[int]) -> Reader:
    reader = Reader()
    request = GenerationRequest(prompt, TOKENS, GREEDY, ignore_eos=True)
    reader.sequence = engine.submit(request, reader)
    return reader.wait()


@pytest.fixture(scope="module", params=["fable", "pirate"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model.open([demo_folder() / f"{request.param}.gguf"]) as model:
        yield model


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("way", ["another context", "the same context", "a file"])
def test_the_text_is_that_of_one_that_stayed(model: Model, kv_type: KvType, way: str, tmp_path: Path) -> None:
    prompt = model.vocab.tokenize(TEXT)
    question = model.vocab.tokenize(QUESTION, add_special=False)
    with Lane() as lane:
        with served(lane, model, None, kv_type) as engine:
            first = say(engine, prompt)
            turn = [*prompt, *first.tokens, *question]
            expected = say(engine, turn)
        lot = ParkingLot(tmp_path, 0 if way == "a file" else 2**30, 2**30)
        parking = lot.of("weights")
        with served(lane, model, parking, kv_type) as engine:
            assert say(engine, prompt).tokens == first.tokens
            if way == "the same context":
                assert engine.park().result(30) > 0
                again = say(engine, turn)
        if way != "the same context":
            lot.flush()
            assert (lot.memory_bytes == 0) == (way == "a file")
            with served(lane, model, parking, kv_type) as engine:
                again = say(engine, turn)
        assert engine.stats.restored_total == 1
        assert again.tokens == expected.tokens
        assert again.finish.usage.cached_tokens == len(prompt) + TOKENS - 1
        lot.close()


def test_a_state_of_another_kind_is_computed_again(model: Model) -> None:
    prompt = model.vocab.tokenize(TEXT)
    lot = ParkingLot(None, 2**30, 0)
    with Lane() as lane:
        with served(lane, model, lot.of("weights")) as engine:
            say(engine, prompt)
        with served(lane, model, None, "q8_0") as engine:
            expected = say(engine, prompt)
        with served(lane, model, lot.of("weights"), "q8_0") as engine:
            reader = say(engine, prompt)
    assert engine.stats.restored_total == 0
    assert reader.tokens == expected.tokens
    lot.close()


PROCESS = """
import json, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from test_parking_real import QUESTION, TEXT, Model, say, served, demo_folder, Lane, ParkingLot
lot = ParkingLot(Path(sys.argv[2]), 2**30, 2**30)
with Model.open([demo_folder() / "fable.gguf"]) as model, Lane() as lane:
    prompt = model.vocab.tokenize(TEXT)
    with served(lane, model, lot.of("weights")) as engine:
        text = say(engine, prompt)
        turn = [*prompt, *text.tokens, *model.vocab.tokenize(QUESTION, add_special=False)]
        first = text.finish.usage.cached_tokens
        second = say(engine, turn)
lot.close()
print(json.dumps([first, second.finish.usage.cached_tokens, text.tokens, second.tokens]))
"""


def test_a_new_process_goes_on(tmp_path: Path) -> None:
    answers = []
    for _ in range(2):
        folders = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        ran = subprocess.run(
            [sys.executable, "-c", PROCESS, folders, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        answers.append(json.loads(ran.stdout))
    (began, _, *texts), (parked, _, *same) = answers
    assert began == 0
    assert parked > 64
    assert same == texts
