from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardload_native import amx
from shardload_native.amx import AmxVerdict, cache_file, probe, remembered
from shardload_native.library import Llama, load


@pytest.fixture
def llama() -> Llama:
    return load()


def test_the_verdict_is_about_this_build(llama: Llama) -> None:
    verdict = amx.amx_verdict()
    assert (verdict.state == "absent") == ("AMX" not in amx.extra_buffer_types(llama))


def test_the_probe_multiplies_with_every_buffer_type_but_amx(llama: Llama) -> None:
    for name in set(amx.extra_buffer_types(llama)) - {"AMX"}:
        assert probe(name) == AmxVerdict("works", "the probe multiplied")
        assert amx.multiply(llama, name) == pytest.approx([amx.COLUMNS] * amx.ROWS * 33, abs=1)


@pytest.mark.parametrize(
    ("code", "stderr", "lasting", "detail"),
    [
        (-signal.SIGILL, "", True, "signal 4"),
        (-signal.SIGSEGV, "", True, "signal 11"),
        (amx.WRONG_RESULT, "a\nwrong result", True, "wrong result"),
        (-signal.SIGKILL, "", False, "signal 9"),
        (-signal.SIGABRT, "GGML_ASSERT", False, "signal 6"),
        (1, "Traceback\nMemoryError", False, "MemoryError"),
        (1, "", False, "no message"),
    ],
)
def test_what_the_end_of_the_probe_says(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, lasting: bool, detail: str
) -> None:
    child = SimpleNamespace(returncode=code, stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: child)
    assert (probe("AMX").state, probe("AMX").lasting) == ("traps", lasting)
    assert detail in probe("AMX").detail


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), subprocess.TimeoutExpired("p", 1)])
def test_a_probe_that_could_not_run_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    path = tmp_path / "amx.json"
    verdict = remembered(path, "one", lambda: probe("AMX"))
    assert verdict.state == "traps"
    assert "did not finish" in verdict.detail
    assert not path.exists()
    assert remembered(path, "one", lambda: AmxVerdict("works", "later")).state == "works"


def test_a_probe_that_raises_may_do_better_later() -> None:
    verdict = probe("no such type")
    assert (verdict.state, verdict.lasting) == ("traps", False)


def test_a_wrong_result_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(amx, "multiply", lambda *_: [1.0])
    assert amx.main(["AMX"]) == amx.WRONG_RESULT
    assert "wrong result: 1.0" in capsys.readouterr().err


def test_a_type_is_dropped_for_good() -> None:
    code = (
        "from shardload_native import amx\n"
        "from shardload_native.library import load\n"
        "llama = load()\n"
        "before = amx.extra_buffer_types(llama)\n"
        "for name in before:\n"
        "    amx.drop_buffer_type(llama, name)\n"
        "    assert name not in amx.extra_buffer_types(llama)\n"
        "assert amx.extra_buffer_types(llama) == []\n"
        "amx.drop_buffer_type(llama, 'AMX')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trap_takes_the_type_away(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(amx, "amx_verdict", lambda: AmxVerdict("traps", "signal 4"))
    monkeypatch.setattr(amx, "extra_buffer_types", lambda _: ["AMX", "CPU_REPACK"])
    monkeypatch.setattr(amx, "drop_buffer_type", lambda _, name: dropped.append(name))
    amx.avoid_traps(llama)
    assert dropped == ["AMX"]
    monkeypatch.setattr(amx, "amx_verdict", lambda: AmxVerdict("works", ""))
    amx.avoid_traps(llama)
    assert dropped == ["AMX"]


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "shardload" / "amx.json"


def test_verdicts_are_remembered_per_build(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "amx.json"
    asked: list[int] = []

    def ask() -> AmxVerdict:
        asked.append(1)
        return AmxVerdict("traps", "signal 4")

    assert remembered(path, "one", ask) == remembered(path, "one", ask) == AmxVerdict("traps", "signal 4")
    assert len(asked) == 1
    remembered(path, "two", ask)
    assert len(asked) == 2
    assert set(json.loads(path.read_text())) == {"one", "two"}
    assert [file.name for file in path.parent.iterdir()] == ["amx.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"one": 3}', b'{"one": {"state": "absent"}}', b"\xff\xfe"]
)
def test_a_damaged_cache_asks_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "amx.json"
    path.write_bytes(content)
    assert remembered(path, "one", lambda: AmxVerdict("works", "new")).detail == "new"
    assert remembered(path, "one", lambda: AmxVerdict("traps", "never")).detail == "new"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    verdict = remembered(tmp_path / "file" / "amx.json", "one", lambda: AmxVerdict("works", "new"))
    assert verdict.state == "works"


def test_the_key_changes_with_the_build(llama: Llama, tmp_path: Path) -> None:
    key = amx.build_and_cpu(llama)
    assert key == amx.build_and_cpu(llama)
    elsewhere = Llama(llama.ffi, llama.lib, "0.3.36.post1", llama.library_path, llama.log)
    assert amx.build_and_cpu(elsewhere) != key
