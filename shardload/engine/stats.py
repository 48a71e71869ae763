"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineTotals:
    """What one engine, or several together, counted since the start."""

    decode_steps_total: int = 0
    compute_seconds_total: float = 0.0
    """Time of the steps; of two engines that share the cores each counts half."""
    paused_total: int = 0
    """How often a sequence lost its slot before its end."""
    parked_total: int = 0
    """Conversations that were saved."""
    restored_total: int = 0
    """Conversations that came back from where they were saved."""
    restored_tokens_total: int = 0

    def plus(self, other: EngineTotals) -> EngineTotals:
        """Both together."""
        return EngineTotals(
            self.decode_steps_total + other.decode_steps_total,
            self.compute_seconds_total + other.compute_seconds_total,
            self.paused_total + other.paused_total,
            self.parked_total + other.parked_total,
            self.restored_total + other.restored_total,
            self.restored_tokens_total + other.restored_tokens_total,
        )


@dataclass(slots=True)
class EngineStats(EngineTotals):
    """Counters of one engine: written on the lane alone, readable on any thread at any time."""

    queued: int = 0
    """Sequences that wait for a slot."""
    running: int = 0
    """Sequences that have one."""
