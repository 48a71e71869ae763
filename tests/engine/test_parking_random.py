"""Whatever comes and goes in whatever order: every greedy text is the one that the model says alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from fakes import FakeRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from turned_lane import Reader, TurnedLane

from shardload.engine import Engine, Lane, ParkingLot
from shardload.errors import ModelUnavailable

MODELS = 2
# A few stems of which every prompt is made, so that beginnings are shared at all lengths.
STEMS = [[number % 7 for number in range(150)], [number % 11 for number in range(150)]]

Action = st.one_of(
    st.tuples(
        st.just("say"),
        st.integers(0, MODELS - 1),
        st.integers(0, len(STEMS) - 1),
        st.sampled_from([1, 40, 75, 90, 120, 150]),
        st.lists(st.integers(0, 2), max_size=3),
    ),
    st.tuples(st.just("go on"), st.integers(0, 9)),
    st.tuples(st.just("turn"), st.sampled_from([1, 5, 40])),
    st.tuples(st.just("park"), st.integers(0, MODELS - 1)),
    st.tuples(st.just("reopen"), st.integers(0, MODELS - 1)),
    st.tuples(st.just("restart")),
)


class World:
    """A lane, two models and a parking, all of which may be replaced at any time."""

    def __init__(self, folder: Path, memory: int, *, recurrent: bool, ctx_tokens: int) -> None:
        self.folder, self.memory = folder, memory
        self.settings = {"recurrent": recurrent, "ctx_tokens": ctx_tokens, "slots": 3, "batch_tokens": 48}
        self.readers: list[tuple[list[int], Reader]] = []
        self.start()

    def start(self) -> None:
        self.lot = ParkingLot(self.folder, self.memory, 10**6)
        self.bench = TurnedLane(Lane())
        self.runners = [FakeRunner(**self.settings) for _ in range(MODELS)]  # type: ignore[arg-type]
        self.engines = [self.attach(number) for number in range(MODELS)]

    def attach(self, number: int) -> Engine:
        return self.bench.attach(self.runners[number], parking=self.lot.of(str(number)))

    def settle(self) -> None:
        """Run until nothing is left to do, and nothing to be fetched."""
        while self.bench.run() or self.engines_wait():
            self.lot._reader.submit(lambda: None).result(30)

    def engines_wait(self) -> bool:
        return any(engine.stats.queued for engine in self.engines)

    def say(self, number: int, prompt: list[int]) -> None:
        reader = self.bench.submit(self.engines[number], prompt, max_tokens=6)
        self.readers.append((prompt, reader))

    def reopen(self, number: int) -> None:
        done = self.bench.lane.detach(self.engines[number])
        self.bench.run(until=done.done)
        self.runners[number].close()
        self.runners[number] = FakeRunner(**self.settings)  # type: ignore[arg-type]
        self.engines[number] = self.attach(number)

    def stop(self) -> None:
        self.bench.lane.close()
        self.lot.close()

    def check(self) -> None:
        for prompt, reader in self.readers:
            expected = FakeRunner().expected(prompt, 6)
            assert reader.ended.is_set()
            if reader.error is None:
                assert reader.tokens == expected
            else:
                # A reopened model, or the end: cut off, but not wrong.
                assert isinstance(reader.error, ModelUnavailable)
                assert reader.tokens == expected[: len(reader.tokens)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(Action, min_size=8, max_size=30),
    st.booleans(),
    st.sampled_from([0, 500, 10**6]),
    st.sampled_from([200, 600]),
)
def test_no_wrong_token(
    actions: list[tuple],
    recurrent: bool,
    memory: int,
    ctx_tokens: int,  # type: ignore[type-arg]
) -> None:
    with TemporaryDirectory() as folder:
        world = World(Path(folder), memory, recurrent=recurrent, ctx_tokens=ctx_tokens)
        for action, *values in actions:
            match action:
                case "say":
                    number, stem, length, end = values
                    world.say(number, [*STEMS[stem][:length], *end])
                case "go on" if world.readers:
                    prompt, reader = world.readers[values[0] % len(world.readers)]
                    if len(prompt) < 160:
                        world.say(values[0] % MODELS, [*prompt, *reader.tokens, 1])
                case "turn":
                    for _ in range(values[0]):
                        world.bench.lane.turn()
                case "park":
                    world.engines[values[0]].park()
                case "reopen":
                    world.reopen(values[0])
                case "restart":
                    world.settle()
                    world.stop()
                    world.start()
        world.settle()
        world.stop()
        world.check()
