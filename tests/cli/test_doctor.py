from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

from shardload.config import StoreConfig
from shardload.errors import UnsupportedLlama
from shardload.llama.facts import LlamaFacts, parse_features
from shardload.shards.entry import PackedKey
from shardload.shards.layouts import LayoutTable, Speeds
from shardload.shards.store import Store
from shardload_server.cli import doctor
from shardload_server.cli.orders import Turn, turn_line, type_orders
from shardload_server.cli.storage import store_check

Invoke = Callable[..., Result]
FACTS = LlamaFacts(
    version="0.3.36",
    ggml_version="0.25",
    library_path="/lib/libllama.so",
    features=("AVX2",),
    gpu_offload=False,
    buffer_types=("CPU_REPACK",),
    amx="absent",
    amx_detail="no AMX",
    lazy_mapping=True,
    lazy_mapping_detail="usable",
    maps_packed=True,
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


def test_packed_weights_may_be_copies() -> None:
    assert verdicts(replace(FACTS, maps_packed=False))["packed weights"] == "note"
    assert verdicts(replace(FACTS, maps_packed=False, buffer_types=()))["packed weights"] == "ok"


def test_pressure_without_an_alarm(tmp_path: Path) -> None:
    assert "every second" in doctor.pressure_check(tmp_path).detail


def test_the_store(tmp_path: Path) -> None:
    assert store_check(StoreConfig(enabled=False)).verdict == "note"
    new = store_check(StoreConfig(directory=str(tmp_path / "new")))
    assert (new.verdict, "empty, at most 20.0 GiB" in new.detail) == ("ok", True)
    made = Store(tmp_path, reserve_bytes=0)
    made.write(PackedKey("a", "Q4_K", (64,), "CPU_REPACK", "here"), memoryview(bytes(4096)))
    assert "4.0 KiB of 20.0 GiB in 1 tensor" in store_check(StoreConfig(directory=str(tmp_path))).detail
    small = StoreConfig(directory=str(tmp_path), limit=8192)
    assert "4.0 KiB of 8.0 KiB in 1 tensor" in store_check(small).detail


@pytest.mark.parametrize(("free", "verdict"), [(2**30, "ok"), (2**30 - 1, "note")])
def test_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check = store_check(StoreConfig(directory=str(tmp_path)))
    assert check.verdict == verdict
    assert ("nothing is added below 1.0 GiB" in check.detail) == (verdict == "note")


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    check = store_check(StoreConfig(directory=str(tmp_path)))
    assert check.verdict == "note"
    assert "cannot be written" in check.detail


def test_orders_of_types() -> None:
    speeds = {"Q4_K": Speeds({1: 10.0, 256: 30.0}, {1: 20.0, 256: 15.0}), "Q4_0": Speeds({1: 1.0}, {1: 2.0})}
    simple, turning = type_orders(LayoutTable(speeds))
    assert (simple.type, turn_line(simple.turns), simple.decode_gain) == ("Q4_0", "packed", 2.0)
    assert (turning.decode_gain, turning.prompt_gain) == (2.0, 0.5)
    assert turning.turns[0] == Turn(1, "packed")
    assert turn_line((Turn(1, "packed"), Turn(16, "file"))) == "packed, 16+ file"


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
