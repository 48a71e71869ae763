from __future__ import annotations

import pytest

from tools.soak import GROWTH_MIB, MIB, Case, Findings, Rest, faults, growth_bytes

CASE = Case("m", "Once", " upon")


def rest(seconds: float, mebibytes: float = 50.0, **changes: object) -> Rest:
    values = {"mapped": (), "resident_bytes": 0, "descriptors": 9} | changes
    return Rest(seconds, int(mebibytes * MIB), **values)  # type: ignore[arg-type]


@pytest.fixture
def found() -> Findings:
    """What a good run finds."""
    findings = Findings(evictions=10, rests=[rest(second) for second in range(0, 600, 30)])
    findings.answered(CASE, " upon")
    return findings


def test_a_good_run(found: Findings) -> None:
    assert faults(found, 1000) == []


def test_a_wrong_token(found: Findings) -> None:
    found.answered(CASE, " a time")
    assert faults(found, 1000) == ["wrong: m 'Once': ' a time' instead of ' upon'"]


def test_a_request_without_an_answer(found: Findings) -> None:
    found.refused(CASE, "503: full")
    assert faults(found, 1000) == ["refused: m: 503: full"]


def test_pages_and_files_that_are_left(found: Findings) -> None:
    found.rests.append(rest(601, mapped=("/m.gguf",), resident_bytes=51, descriptors=20))
    assert faults(found, 1000) == [
        "still mapped with no model open: /m.gguf",
        "51 bytes of files in memory with no model open",
        "descriptors grew from 9 to 20",
    ]


def test_growth_is_that_of_a_line_after_the_warm_up() -> None:
    early = [rest(second, 10.0) for second in range(0, 180, 30)]
    flat = [rest(second, 50.0 + second % 60 / 30) for second in range(180, 600, 30)]
    assert abs(growth_bytes(early + flat)) < 2 * MIB
    steep = [rest(second, second / 10) for second in range(180, 601, 30)]
    assert growth_bytes(early + steep) == pytest.approx(42 * MIB, rel=0.01)
    assert growth_bytes(steep[:2]) == 0


def test_growth_is_a_fault(found: Findings) -> None:
    found.rests[:] = [rest(second, second * GROWTH_MIB / 300) for second in range(0, 601, 30)]
    (said,) = faults(found, 1000)
    assert said.startswith("private memory at rest grew by 2")


def test_a_run_that_did_nothing() -> None:
    assert faults(Findings(rests=[rest(1)]), 1000) == ["0 answers and 0 evictions prove nothing"]
