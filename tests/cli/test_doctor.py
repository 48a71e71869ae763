from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from typer.testing import Result

from shardload.errors import UnsupportedLlama
from shardload.llama.facts import LlamaFacts, parse_features
from shardload_server.cli import doctor

Invoke = Callable[..., Result]
FACTS = LlamaFacts(
    version="0.3.36",
    ggml_version="0.25",
    library_path="/lib/libllama.so",
    features=("AVX2",),
    gpu_offload=False,
    buffer_types=(),
    amx="absent",
    amx_detail="no AMX",
    lazy_mapping=True,
    lazy_mapping_detail="usable",
)


def verdicts(facts: LlamaFacts, *, linux: bool = True) -> dict[str, str]:
    return {check.name: check.verdict for check in doctor.llama_checks(facts, linux=linux)}


def test_a_healthy_machine() -> None:
    assert set(verdicts(FACTS).values()) == {"ok"}


def test_amx_that_traps_is_a_note() -> None:
    assert verdicts(replace(FACTS, amx="traps"))["AMX"] == "note"


def test_hooks_matter_on_linux_alone() -> None:
    unusable = replace(FACTS, lazy_mapping=False, lazy_mapping_detail="no slot")
    assert verdicts(unusable)["lazy mapping"] == "bad"
    assert verdicts(unusable, linux=False)["lazy mapping"] == "note"


@pytest.mark.real
def test_this_machine(invoke: Invoke) -> None:
    result = invoke("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert "llama-cpp-python 0.3.36" in checks["llama.cpp"]["detail"]
    assert max(map(len, invoke("doctor").stdout.splitlines())) <= 80


def test_a_llama_that_cannot_be_used(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> LlamaFacts:
        raise UnsupportedLlama("llama-cpp-python is not installed")

    monkeypatch.setattr(doctor, "llama_facts", missing)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "not installed" in result.stdout


def test_parse_features() -> None:
    assert parse_features("CPU : SSE3 = 1 | AVX = 0 | OPENMP = 1 | ") == ("SSE3", "OPENMP")
