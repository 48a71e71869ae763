"""Figures of a row: medians, spreads, and whether the target is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from tools.bench.models import DEFAULT_KIND, Models


@dataclass(frozen=True, slots=True)
class Setting:
    """How thoroughly to measure, with which models, and where what our servers keep is kept meanwhile."""

    threads: int
    repeats: int
    tokens: int
    models: Models
    cache: Path
    quick: bool = False

    def only(self, *letters: str, kind: str = DEFAULT_KIND) -> dict[str, Path]:
        """Some of the models of a type."""
        return {letter: self.models.plain(kind, letter) for letter in letters}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``values`` has one value per repeat, which the target is about."""

    what: str
    ours: str
    theirs: str
    values: tuple[float, ...]
    target: float
    better: Literal["higher", "lower"]
    unit: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def figure(values: Sequence[float], unit: str, digits: int = 1) -> str:
    """A median with its range: ``27.1 [26.0, 28.3] tok/s``."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] {unit}".strip()


def paired(
    repeats: int, ours: Callable[[int], float], theirs: Callable[[int], float]
) -> tuple[list[float], list[float]]:
    """Measure both in turns, so that what the machine does meanwhile hits both; turn 0 warms up."""
    first: list[float] = []
    second: list[float] = []
    for turn in range(repeats + 1):
        if turn % 2:
            one, other = ours(turn), theirs(turn)
        else:
            other, one = theirs(turn), ours(turn)
        if turn:
            first.append(one)
            second.append(other)
    return first, second


def quotients(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    """The ratio of each pair."""
    return tuple(one / other for one, other in zip(first, second, strict=True))
