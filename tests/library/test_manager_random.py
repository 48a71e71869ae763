"""Whatever is asked in whatever order: the manager keeps its promises and its ledger is right."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import anyio
import pytest
from fake_library import Library, Request, write_model
from fake_opener import KV_BYTES, ONE_MODEL, FakeClock, FakeEngine, FakeOpener
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.config import parse_config
from shardload.errors import AllPinned, InsufficientMemory, LoadFailed, OpenFailed, Overloaded
from shardload.library.candidates import Rules, holdings
from shardload.library.catalog import Catalog
from shardload.library.entry import Use
from shardload.library.manager import Manager
from shardload.library.relief import reclaimable_bytes

BUDGET_BYTES = 3 * ONE_MODEL
NAMES = ("a", "b", "c", "d", "e", "wide", "huge", "giant", "twin", "sister")
FILES = tuple(name for name in NAMES if name != "wide")
TEXT = """
folders = ["."]
[models.wide]
base = "a"
ctx = 1024
[models.e]
keep_alive = 2
"""

STEPS = st.one_of(
    st.tuples(st.just("request"), st.sampled_from(NAMES)),
    st.tuples(st.just("request"), st.sampled_from(NAMES)),
    st.tuples(st.just("embed"), st.sampled_from(NAMES)),
    st.tuples(st.just("seeded"), st.sampled_from(NAMES)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 3.0, 20.0])),
    st.tuples(st.just("hold"), st.sampled_from(NAMES)),
    st.tuples(st.just("hold_close"), st.sampled_from(NAMES)),
    st.tuples(st.just("let go"), st.sampled_from(NAMES)),
    st.tuples(st.just("break"), st.sampled_from(NAMES)),
    st.tuples(st.just("mend"), st.sampled_from(NAMES)),
    st.tuples(st.just("pin"), st.sampled_from(NAMES)),
    st.tuples(st.just("unpin"), st.sampled_from(NAMES)),
    st.tuples(st.just("unload"), st.sampled_from(NAMES)),
    st.tuples(st.just("hold_move"), st.sampled_from(NAMES)),
    st.tuples(st.just("stubborn"), st.sampled_from(NAMES)),
    st.tuples(st.just("page out"), st.sampled_from(NAMES)),
    st.tuples(st.just("budget"), st.sampled_from([0.5, 1.0, 2.0, 3.0])),
    st.tuples(st.just("relieve"), st.sampled_from([30, 200])),
    st.tuples(st.just("rest"), st.just(0)),
)


KINDS: dict[str, Use] = {"request": "generate", "embed": "embed", "seeded": "seeded"}


class Walk:
    """Does one step after the other, and looks at everything in between."""

    def __init__(self, library: Library, *, fixed_budget: bool) -> None:
        self.library, self._fixed_budget = library, fixed_budget
        self.requests: list[Request] = []
        self.pinned: set[str] = set()

    async def do(self, verb: str, what: str | float) -> None:
        library, opener = self.library, self.library.opener
        name = what if isinstance(what, str) else ""
        if verb in KINDS:
            self.requests.append(library.request(name, KINDS[verb]))
        elif verb in ("release", "cancel") and self.requests:
            request = self.requests[int(what) % len(self.requests)]
            if verb == "cancel":
                request.cancel()
            elif request.lease is not None:
                request.release()
        elif verb == "pass":
            await library.pass_time(float(what))
        elif verb == "hold":
            opener.hold(name)
        elif verb == "hold_close":
            opener.hold_close(name)
        elif verb == "let go":
            opener.let_go(name)
        elif verb == "break":
            opener.failures[name] = LoadFailed(name, "broken")
        elif verb == "mend":
            opener.failures.pop(name, None)
        elif verb in ("pin", "unpin"):
            library.manager.pin(name, verb == "pin")
        elif verb == "unload":
            library.tasks.start_soon(library.manager.unload, name)
        elif verb == "hold_move":
            opener.hold_move(name)
        elif verb == "stubborn":
            opener.stubborn ^= {name}
        elif verb == "page out":
            for model in opener.models:
                if model.name == name:
                    opener.cache |= dict.fromkeys(model.places, 0)
        elif verb == "budget" and not self._fixed_budget:
            library.manager._budget.configured = int(float(what) * ONE_MODEL)
            library.manager.turn()
        elif verb == "relieve" and not self._fixed_budget:
            library.tasks.start_soon(library.manager.relieve, int(what))
        if verb == "rest":
            await library.rest()
        else:
            await anyio.lowlevel.checkpoint()
        self.check()

    def check(self) -> None:
        """The promises."""
        ledger, opener = self.library.manager._ledger, self.library.opener
        held = [request for request in self.requests if request.lease and not request.released]
        for request in held:
            assert request.lease is not None
            opener.compute(cast(FakeEngine, request.lease.engine))
        assert opener.open_bytes <= ledger.used_bytes(), "there is more in memory than the ledger knows"
        if self._fixed_budget:
            assert ledger.used_bytes() <= BUDGET_BYTES, "over the budget"
        for instance in ledger.instances.values():
            assert instance.leases >= 0
            if instance.leases:
                assert instance.state == "open"
        assert sum(i.leases for i in ledger.instances.values()) >= len(held)
        for request in held:
            assert request.lease is not None
            engine = request.lease.engine
            assert not engine.closed, "a lease on a closed context"  # type: ignore[attr-defined]
            assert engine.path == request.lease.entry.path  # type: ignore[attr-defined]

    def check_at_rest(self) -> None:
        """What holds when nothing is under way: nothing stays that could leave."""
        manager = self.library.manager
        pinned = manager._pinned()
        over_bytes = manager._ledger.used_bytes() - manager._budget.bytes_at(self.library.clock.now)
        left = holdings(manager._ledger, Rules(set(pinned)))
        assert over_bytes <= 0 or reclaimable_bytes(left) == 0, "something could leave"
        self.check_counts()

    def check_counts(self) -> None:
        """What was computed is counted once, whatever has been closed since."""
        for status in self.library.manager.status():
            file = self.library.catalog.get(status.name).path.stem
            assert status.work.decode_steps_total == self.library.opener.steps[file], status.name

    async def finish(self) -> None:
        """With everything let go and given back, nobody is left waiting."""
        library = self.library
        library.opener.stubborn.clear()
        library.manager._budget.configured = BUDGET_BYTES
        for name in NAMES:
            library.opener.let_go(name)
            library.opener.failures.pop(name, None)
            library.manager.pin(name, False)
        await library.rest()
        self.check_at_rest()
        for _ in range(3 * len(self.requests) + 3):
            await library.pass_time(20.0)
            for request in self.requests:
                if request.lease is not None:
                    request.release()
        await library.rest()
        for request in self.requests:
            assert not request.waits or request.cancelled, "a request is lost"
            known = (OpenFailed, Overloaded, InsufficientMemory, AllPinned)
            assert request.error is None or isinstance(request.error, known), repr(request.error)
        leases = sum(instance.leases for instance in library.manager._ledger.instances.values())
        assert leases == 0, "leases are out of balance"
        await library.pass_time(1e6)
        assert not library.manager._ledger.instances
        assert not library.manager._ledger.weights
        self.check_counts()
        assert library.opener.open_bytes == 0


async def walk(
    folder: Path, steps: Sequence[tuple[str, str | float]], *, fixed_budget: bool, foresees_sharing: bool
) -> None:
    catalog = Catalog.from_config(parse_config(TEXT, folder / "x.toml"))
    clock = FakeClock()
    opener = FakeOpener(clock)
    opener.sizes |= {"huge": 2 * ONE_MODEL + KV_BYTES, "giant": 6 * ONE_MODEL}
    opener.seconds |= {"c": 80, "d": 200, "huge": 150}
    opener.foresees_sharing = foresees_sharing
    opener.places |= {"twin": {"common": 80, "twin": 20}, "sister": {"common": 80, "sister": 20}}
    async with anyio.create_task_group() as tasks:
        manager = Manager(catalog, opener, budget_bytes=BUDGET_BYTES, clock=clock, queue_limit=3)
        async with manager:
            library = Library(folder, catalog, manager, opener, clock, tasks)
            walker = Walk(library, fixed_budget=fixed_budget)
            for verb, what in steps:
                await walker.do(verb, what)
            await walker.finish()


@pytest.mark.parametrize("fixed_budget", [True, False])
def test_any_order_of_events(fixed_budget: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in FILES:
            write_model(folder / f"{model}.gguf")

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(STEPS, max_size=40), st.booleans())
        def check(steps: list[tuple[str, str | float]], foresees_sharing: bool) -> None:
            options = {"fixed_budget": fixed_budget, "foresees_sharing": foresees_sharing}
            anyio.run(partial(walk, folder, steps, **options))

        check()
