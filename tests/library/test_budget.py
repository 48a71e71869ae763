from __future__ import annotations

import pytest

from shardload.config import Config, MemoryConfig
from shardload.library import budget
from shardload.library.budget import budget_bytes


def test_configured() -> None:
    assert budget_bytes(Config(memory=MemoryConfig(budget=123))) == 123


def test_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_bytes", lambda: 1000)
    assert budget_bytes(Config()) == 800
