"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re

LEAST_BUDGET_BYTES = 2**20
"""Less is a number that was meant in other units."""
FOREVER_SECONDS = -1.0
"""A keep-alive that never runs out; 0 closes a model as soon as it is idle."""


def parse_bytes(value: object) -> int:
    """Read a size such as ``"12GiB"``, ``"1.5G"`` (binary), ``"12GB"`` (decimal) or a number of bytes.

    Raises ValueError.
    """
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp]?)(i?)(b?))\s*", text, re.IGNORECASE | re.ASCII)
    if not found or (found[3] and not found[2]):
        raise ValueError(f"{value!r} is not a size: write it like '12GiB'")
    decimal = found[4] and not found[3]
    count = float(found[1]) * (1000 if decimal else 1024) ** " kmgtp".index(found[2].lower() or " ")
    if not 1 <= count < 2**63:
        raise ValueError(f"the size {value!r} is out of range")
    return int(count)


def parse_budget(value: object) -> int:
    """Read a size as ``parse_bytes`` does, which a model may fit in. Raises ValueError."""
    count = parse_bytes(value)
    if count < LEAST_BUDGET_BYTES:
        raise ValueError(f"{value!r} is a budget of {count} bytes: write it like '12GiB'")
    return count


def parse_bytes_or_none(value: object) -> int:
    """Read a size as ``parse_bytes`` does, or 0. Raises ValueError."""
    return 0 if value in (0, "0") and not isinstance(value, bool) else parse_bytes(value)


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)


def parse_duration(value: object) -> float:
    """Read seconds from a number or from text such as ``"5m"`` and ``"1h30m"``; below 0: for ever (-1.0).

    Raises ValueError.
    """
    text = str(value).strip().lower() if isinstance(value, int | float | str) else ""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if re.fullmatch(rf"(?:{_DURATION_PART.pattern})+", digits, re.ASCII):
        seconds = sum(
            float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(digits)
        )
    elif re.fullmatch(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", digits, re.ASCII):
        seconds = float(digits)
    else:
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds):
        raise ValueError(f"{value!r} is not a duration: write it like '5m', or -1 for ever")
    return FOREVER_SECONDS if sign < 0 and seconds > 0 else seconds
