"""Contexts of their own for seeded texts."""

from __future__ import annotations

import pytest
from fake_library import OpenLibrary

from shardload.errors import Overloaded

pytestmark = pytest.mark.anyio


async def test_seeded_texts_have_a_context_of_their_own(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        ordinary, seeded = await library.lease("a"), await library.lease("a", "seeded")
        assert library.opener.opens == {"a": 1}
        assert ordinary.engine is not seeded.engine
        assert (await library.lease("a", "seeded")).engine is seeded.engine
        status = library.status("a")
        assert (status.kv_bytes, status.private_bytes, status.leases) == (30, 50, 3)
        library.leases[-1].release()
        library.manager.pin("a", True)
        for lease in (ordinary, seeded):
            lease.release()
        await library.pass_time(301)
        assert len(library.opener.engines) == 2
        await library.manager.unload("a")
        assert not library.opener.engines


async def test_a_seeded_context_expires(open_library: OpenLibrary) -> None:
    async with open_library() as library:
        await library.use("a", kind="seeded")
        held = await library.lease("a")
        await library.pass_time(301)
        assert [engine.kind for engine in library.opener.engines] == ["generate"]
        held.release()


async def test_a_seeded_context_never_takes_the_place_of_the_ordinary_one(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=1.1) as library:
        seeded = await library.lease("a", "seeded")
        assert [engine.kind for engine in library.opener.engines] == ["generate"]
        assert (await library.lease("a")).engine is seeded.engine
    async with open_library("ab", budget=2.1) as library:
        await library.use("b")
        await library.lease("a")
        await library.lease("a", "seeded")
        assert library.status("b").warm_share == 0.93
        kinds = [engine.kind for engine in library.opener.engines if engine.path.stem == "a"]
        assert sorted(kinds) == ["generate", "seeded"]
        library.leases[-1].release()
    async with open_library("ab", budget=2.1) as library:
        await library.lease("b")
        ordinary = await library.lease("a")
        assert (await library.lease("a", "seeded")).engine is ordinary.engine


async def test_the_queue_of_a_seeded_context(open_library: OpenLibrary) -> None:
    async with open_library(queue_limit=2) as library:
        for _ in range(3):
            await library.lease("a", "seeded")
        with pytest.raises(Overloaded):
            await library.lease("a", "seeded")
        await library.lease("a")
