from __future__ import annotations

from pathlib import Path
from types import ModuleType


def test_mutated_headers_end_in_an_error_of_ours(fuzzer: ModuleType, tmp_path: Path) -> None:
    outcomes, _ = fuzzer.fuzz(500, 20_260, tmp_path)
    assert outcomes.total() >= 500
    assert set(outcomes) <= {"opened", "NotGGUF", "CorruptGGUF", "UnsupportedGGUF", "MissingSplit"}
    assert {"opened", "CorruptGGUF", "UnsupportedGGUF"} <= set(outcomes)


def test_seeds_open(fuzzer: ModuleType, tmp_path: Path) -> None:
    for data in fuzzer.SEEDS:
        assert fuzzer.check(data, tmp_path / "seed.gguf")[0] == "opened"
