"""What is told of the engines of a model."""

from __future__ import annotations

from typing import Any

import pytest
from fake_library import OpenLibrary

from shardload.engine.stats import EngineStats, EngineTotals
from shardload.library.entry import Use
from shardload.library.lease import Lease
from shardload.library.opener import Residency, WeightsFacts

pytestmark = pytest.mark.anyio

KINDS: tuple[Use, ...] = ("generate", "embed", "seeded")
WIDE = "[models.wide]\nbase = 'a'\nctx = 1024"


def stats_of(lease: Lease) -> EngineStats:
    engine: Any = lease.engine
    stats: EngineStats = engine.stats
    return stats


async def test_engines_of_every_kind_and_size_count_together(open_library: OpenLibrary) -> None:
    async with open_library("ab", text=WIDE) as library:
        leases = [await library.lease("a", kind) for kind in KINDS]
        for lease in (*leases, await library.lease("wide")):
            stats = stats_of(lease)
            stats.decode_steps_total, stats.compute_seconds_total, stats.paused_total = 10, 0.5, 1
            stats.parked_total, stats.restored_total, stats.restored_tokens_total = 3, 2, 100
            stats.running, stats.queued = 2, 1
        # A name has contexts of its own size, and work on weights that others have, too.
        own, wide = library.status("a"), library.status("wide")
        assert (own.running_sequences, own.queued_sequences) == (6, 3)
        assert (wide.running_sequences, wide.queued_sequences) == (2, 1)
        assert own.work == wide.work == EngineTotals(40, 2.0, 4, 12, 8, 400)
        assert library.status("b").work == EngineTotals()


async def test_what_was_counted_outlives_the_context_and_the_weights(open_library: OpenLibrary) -> None:
    async with open_library("a") as library:
        for opens in (1, 2):
            for kind in KINDS:
                lease = await library.lease("a", kind)
                stats_of(lease).decode_steps_total += 5
                stats_of(lease).running = 1
                assert library.status("a").running_sequences == 1
                stats_of(lease).running = 0
                lease.release()
            await library.rest()
            before = library.status("a").work
            go_on = library.opener.hold_close("a")
            library.tasks.start_soon(library.manager.unload, "a")
            await library.rest()
            assert library.opener.engines, "it is being closed"
            assert library.status("a").work == before
            go_on()
            await library.rest()
            assert library.status("a").state == "closed"
            # Each context saved one conversation as it was closed.
            assert library.status("a").work == EngineTotals(
                decode_steps_total=15 * opens, parked_total=3 * opens
            )
            library.opener.let_go("a")


async def test_what_packing_has_moved_is_told_together(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("a") as library:
        await library.lease("a")
        await library.manager.measure()
        before = library.status("a")
        moved = WeightsFacts(
            private_bytes=0,
            working_bytes=1000,
            places={"packed": 1000},
            measured=Residency(900, second_bytes=7, packed_bytes=800),
        )
        facts = library.opener._facts
        with monkeypatch.context() as patch:
            patch.setattr(library.opener, "_facts", lambda _: moved)
            status = library.status("a")
            assert (status.resident_bytes, status.packed_bytes, status.second_bytes) == (900, 800, 7)
            assert status.warm_share == 0.9
            assert (
                status.private_bytes == before.private_bytes - facts(library.opener.model("a")).private_bytes
            )
        assert library.status("a") == before
