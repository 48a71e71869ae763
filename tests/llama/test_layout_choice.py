from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shardload.llama import layout_choice
from shardload.llama.layout_choice import LayoutChoice, default_path
from shardload.shards.layouts import LayoutTable, Speeds, encode_tables, machine_key

FASTER_IN_FILE = Speeds(file={1: 10.0, 256: 300.0}, packed={1: 20.0, 256: 200.0})


class Children:
    """Measures at once, or is stopped as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.disturbed = 0
        self.speeds: Mapping[str, Speeds] | None = None
        monkeypatch.setattr(layout_choice, "_measure_in_child", self.measure)
        monkeypatch.setattr(layout_choice, "CALM_SECONDS", 0.0)
        monkeypatch.setattr(layout_choice, "POLL_SECONDS", 0.001)

    def measure(
        self, name: str, threads: int, stops: Callable[[], bool] = lambda: False
    ) -> Mapping[str, Speeds] | None:
        self.asked.append(name)
        if self.disturbed:
            self.disturbed -= 1
            return None
        return {name: FASTER_IN_FILE} if self.speeds is None else self.speeds


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


@pytest.fixture
def choice(tmp_path: Path) -> LayoutChoice:
    return LayoutChoice(tmp_path / "cache" / "layouts.json", "build", 2)


def never() -> bool:
    return False


def test_what_was_not_measured_is_read_packed(choice: LayoutChoice) -> None:
    choose = choice.for_types({"q4_K": 100})
    assert {choose(tokens) for tokens in (1, 256, 512)} == {"packed"}


def test_what_is_measured_later_is_followed(choice: LayoutChoice, children: Children) -> None:
    choose = choice.for_types({"q4_K": 100})
    assert choose(256) == "packed"
    choice.measure(["q4_K"], is_busy=never, stops=never)
    assert [choose(1), choose(256), choose(256)] == ["packed", "file", "file"]
    assert choice.for_types({"q4_0": 100})(256) == "packed"


def test_each_type_is_measured_once(choice: LayoutChoice, children: Children) -> None:
    for _ in range(2):
        choice.measure(["q4_K", "q4_0"], is_busy=never, stops=never)
    assert children.asked == ["q4_K", "q4_0"]
    choice.measure_now(["q4_K"])
    assert children.asked == ["q4_K", "q4_0", "q4_K"]


def test_measurements_are_remembered_for_the_build_and_the_threads(
    choice: LayoutChoice, children: Children
) -> None:
    choice.measure(["q4_K"], is_busy=never, stops=never)
    assert LayoutChoice(choice.path, "build", 2).for_types({"q4_K": 1})(256) == "file"
    for build, threads in (("other", 2), ("build", 3)):
        assert LayoutChoice(choice.path, build, threads).for_types({"q4_K": 1})(256) == "packed"


def test_what_another_process_measured_stays(choice: LayoutChoice, children: Children) -> None:
    other = LayoutChoice(choice.path, "build", 2)
    elsewhere = LayoutChoice(choice.path, "another build", 2)
    for one, name in ((other, "q4_0"), (elsewhere, "q2_K"), (choice, "q4_K")):
        one.measure([name], is_busy=never, stops=never)
    assert choice.table.missing(["q4_0", "q4_K"]) == []
    again = LayoutChoice(choice.path, "build", 2)
    assert again.table.missing(["q4_0", "q4_K", "q2_K"]) == ["q2_K"]
    assert LayoutChoice(choice.path, "another build", 2).table.missing(["q2_K"]) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"build 2": {"q4_K": {"file": 1}}}'])
def test_a_damaged_file_is_as_none(choice: LayoutChoice, children: Children, content: bytes) -> None:
    choice.path.parent.mkdir()
    choice.path.write_bytes(content)
    again = LayoutChoice(choice.path, "build", 2)
    again.measure(["q4_K"], is_busy=never, stops=never)
    assert LayoutChoice(choice.path, "build", 2).table.missing(["q4_K"]) == []


def test_what_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    choice = LayoutChoice(tmp_path / "file" / "layouts.json", "build", 2)
    with caplog.at_level(logging.INFO, "shardload.shards"):
        choice.measure(["q4_K", "q4_0"], is_busy=never, stops=never)
    assert choice.table.missing(["q4_K", "q4_0"]) == []
    assert "not remembered" in caplog.text


def test_what_was_disturbed_is_measured_again(choice: LayoutChoice, children: Children) -> None:
    children.disturbed = 3
    choice.measure(["q4_K"], is_busy=never, stops=never)
    assert children.asked == ["q4_K"] * 4
    assert choice.table.missing(["q4_K"]) == []


def test_what_cannot_be_measured_is_tried_once(choice: LayoutChoice, children: Children) -> None:
    children.speeds = {}
    for _ in range(2):
        choice.measure(["q4_K"], is_busy=never, stops=never)
    assert children.asked == ["q4_K"]


def test_measuring_stops_when_it_is_told_to(
    choice: LayoutChoice, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice.measure(["q4_K"], is_busy=never, stops=lambda: True)
    monkeypatch.setattr(layout_choice, "CALM_SECONDS", 60.0)
    asked = iter([False, False, True])
    choice.measure(["q4_K"], is_busy=lambda: True, stops=lambda: next(asked))
    assert children.asked == []


def test_nothing_is_measured_before_it_is_calm(
    choice: LayoutChoice, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_choice, "CALM_SECONDS", 0.0005)
    busy = [True] * 5
    choice.measure(["q4_K"], is_busy=lambda: bool(busy and busy.pop()), stops=never)
    assert children.asked == ["q4_K"]


# -- the child


def child_that(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Any]:
    """Let another program stand in for the measurement; the children that are started."""
    started: list[Any] = []
    real = subprocess.Popen

    def start(_command: Any, **options: Any) -> Any:
        started.append(real([sys.executable, "-c", code], **options))
        return started[-1]

    monkeypatch.setattr(layout_choice.subprocess, "Popen", start)
    return started


def test_what_a_child_prints_is_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = encode_tables({layout_choice.MEASURED: LayoutTable({"q4_K": FASTER_IN_FILE})}).decode()
    child_that(monkeypatch, f"print({printed!r})")
    assert layout_choice._measure_in_child("q4_K", 2) == {"Q4_K": FASTER_IN_FILE}


@pytest.mark.parametrize("code", ["print('nonsense')", "print('{}')"])
def test_what_says_nothing_measures_nothing(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    child_that(monkeypatch, code)
    assert layout_choice._measure_in_child("q4_K", 2) == {}


@pytest.mark.parametrize("seconds", [0.0, 300.0])
def test_a_child_that_fails_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    monkeypatch.setattr(layout_choice, "MEASURE_SECONDS", seconds)
    child_that(monkeypatch, "raise SystemExit(3)" if seconds else "import time; time.sleep(60)")
    assert layout_choice._measure_in_child("q4_K", 2) == {}
    assert "could not be measured" in caplog.text


def test_a_child_is_ended_as_soon_as_somebody_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    started = child_that(monkeypatch, "import time; time.sleep(60)")
    busy = iter([False, False, True])
    assert layout_choice._measure_in_child("q4_K", 2, lambda: next(busy)) is None
    (child,) = started
    assert child.returncode not in (None, 0)


def test_where_measurements_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "shardload" / "layouts.json"
    assert machine_key("build", 2) != machine_key("build", 3)
