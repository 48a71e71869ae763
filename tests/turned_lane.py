"""A lane that is turned by hand, and a reader that takes everything down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from fakes import FakeRunner

from shardload.engine import Delta, Engine, Finish, GenerationRequest, Lane, Parking, SamplingParams
from shardload.engine import Sequence as EngineSequence
from shardload.errors import ShardloadError

GREEDY = SamplingParams(temperature=0)


class Reader:
    """A sink that takes everything down and acknowledges it, if it is not told to be slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow
        self.deltas: list[Delta] = []
        self.error: ShardloadError | None = None
        self.sequence: EngineSequence | None = None
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, events: Sequence[Delta | ShardloadError]) -> None:
        assert not self.ended.is_set(), "an event after the end"
        for event in events:
            if isinstance(event, ShardloadError):
                self.error = event
                self.ended.set()
                continue
            self.deltas.append(event)
            if self.sequence is not None and not self.slow:
                self.sequence.acknowledge(1)
            if event.finish is not None:
                self.ended.set()
        self.began.set()

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.tokens]

    @property
    def finish(self) -> Finish:
        if self.error is not None:
            raise self.error
        finish = self.deltas[-1].finish
        assert finish is not None
        return finish

    def wait(self) -> Reader:
        assert self.ended.wait(30), "the sequence did not end"
        return self


class TurnedLane:
    """A lane that is turned by hand, so that a test sees every step."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    def attach(
        self, runner: FakeRunner, name: str = "model", weight: float = 1.0, parking: Parking | None = None
    ) -> Engine:
        return self.lane.attach(runner, name=name, weight=weight, parking=parking)

    def submit(self, engine: Engine, prompt: Sequence[int], **options: object) -> Reader:
        """Greedy unless told otherwise."""
        reader = Reader(slow=bool(options.pop("slow", False)))
        request = GenerationRequest(prompt, **{"sampling": GREEDY, **options})  # type: ignore[arg-type]
        reader.sequence = engine.submit(request, reader)
        return reader

    def say(self, engine: Engine, prompt: Sequence[int], max_tokens: int = 5) -> Reader:
        """Answer a prompt to the end."""
        reader = self.submit(engine, prompt, max_tokens=max_tokens)
        self.run()
        return reader

    def detach(self, engine: Engine) -> None:
        """Take a model from the lane, all of it."""
        done = self.lane.detach(engine)
        self.run()
        assert done.done()

    def run(self, until: Callable[[], bool] = lambda: False, limit: int = 5000) -> int:
        """Turn until there is nothing to do, or the condition holds; the number of turns."""
        for turns in range(limit):
            if until() or not self.lane.turn():
                return turns
        raise AssertionError("there was no end")
