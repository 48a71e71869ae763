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
    """`in_turns` for two sides."""
    first, second = in_turns(repeats, ours, theirs)
    return first, second


def in_turns(repeats: int, *sides: Callable[[int], float]) -> list[list[float]]:
    """Measure all sides in turns, so that what the machine does meanwhile hits all; turn 0 warms up."""
    figures: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        places = list(enumerate(sides))
        for place, side in places if turn % 2 else reversed(places):
            value = side(turn)
            if turn:
                figures[place].append(value)
    return figures


def quotients(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    """The ratio of each pair."""
    return tuple(one / other for one, other in zip(first, second, strict=True))
