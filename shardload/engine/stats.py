"""What an engine counts."""

from __future__ import annotations


class EngineStats:
    """Counters of one engine: written on the lane alone, readable on any thread at any time."""

    __slots__ = (
        "cached_tokens_total",
        "completion_tokens_total",
        "compute_seconds_total",
        "decode_steps_total",
        "failed_total",
        "finished_total",
        "parked_total",
        "paused_total",
        "prompt_tokens_total",
        "queued",
        "restored_tokens_total",
        "restored_total",
        "running",
    )

    def __init__(self) -> None:
        self.queued = 0
        self.running = 0
        self.prompt_tokens_total = 0
        self.cached_tokens_total = 0
        self.completion_tokens_total = 0
        self.decode_steps_total = 0
        self.finished_total = 0
        self.failed_total = 0
        self.paused_total = 0
        self.compute_seconds_total = 0.0
        # Conversations that were saved, and that came back from where they were.
        self.parked_total = 0
        self.restored_total = 0
        self.restored_tokens_total = 0
