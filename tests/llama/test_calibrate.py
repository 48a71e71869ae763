from __future__ import annotations

import json
from typing import Any

import pytest

from shardload.llama import calibrate as calibrate_module
from shardload.llama.calibrate import MEASURED, TYPE_NUMBERS, calibrate, main
from shardload.shards.layouts import decode_tables
from shardload_native.amx import extra_buffer_types
from shardload_native.library import load

packs = pytest.mark.skipif(not extra_buffer_types(load()), reason="this build packs nothing")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, "STEP_TOKENS", (1, 16))
    monkeypatch.setattr(calibrate_module, "MATRICES", 2)
    monkeypatch.setattr(calibrate_module, "COLUMNS", 256)
    monkeypatch.setattr(calibrate_module, "ROWS", 256)
    monkeypatch.setattr(calibrate_module, "LEAST_SECONDS", 0.0001)
    monkeypatch.setattr(calibrate_module, "REPEATS", 2)


@packs
def test_types_are_measured_in_both_orders(quick: None) -> None:
    told: list[tuple[str, int]] = []
    found = calibrate(["q4_0", "q4_K", "f16"], 1, lambda *one: told.append(one))
    assert set(found) <= {"q4_0", "q4_K"}
    assert "q4_0" in found
    for speeds in found.values():
        assert set(speeds.file) == set(speeds.packed) == {1, 16}
        assert all(speed > 0 for speed in (*speeds.file.values(), *speeds.packed.values()))
    assert told[:2] == [("q4_0", 1), ("q4_0", 16)]


def test_types_of_one_order_are_left_out(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrate(["f16", "nonesuch"], 1) == {}
    monkeypatch.setattr(calibrate_module, "_packed_types", lambda _: [])
    assert calibrate(["q4_0"], 1) == {}
    monkeypatch.undo()
    monkeypatch.setattr(calibrate_module, "STEP_TOKENS", (1,))
    monkeypatch.setattr(calibrate_module, "_has_kernels", lambda _: False)
    assert calibrate(["q4_0"], 1) == {}


def test_types_have_the_numbers_of_files() -> None:
    from shardload.gguf.constants import TENSOR_TYPES

    names = {name.upper(): number for name, number in TYPE_NUMBERS.items()}
    assert {TENSOR_TYPES[number].name.upper() for number in names.values()} == set(names)


def test_a_computation_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        class lib:
            @staticmethod
            def ggml_backend_graph_compute(_backend: Any, _graph: Any) -> int:
                return 1

    llama: Any = Failing
    with pytest.raises(RuntimeError, match="could not compute"):
        calibrate_module._compute(llama, None, None)


def test_steps_of_many_tokens_take_fewer_matrices() -> None:
    counts = [calibrate_module._matrices(tokens) for tokens in calibrate_module.STEP_TOKENS]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (calibrate_module.MATRICES, 1)


@packs
def test_what_is_printed_can_be_read(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--threads", "1", "q4_0"]) == 0
    printed = capsys.readouterr().out
    assert set(json.loads(printed)[MEASURED]) == {"Q4_0"}
    assert set(decode_tables(printed.encode())[MEASURED].speeds) == {"Q4_0"}
