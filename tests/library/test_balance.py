"""What is open stays within the budget, and takes what is left over, whoever waits."""

from __future__ import annotations

import errno

import pytest
from fake_library import OpenLibrary, moves
from fake_opener import CONTEXT_BYTES, ONE_MODEL, VOCABULARY_BYTES

pytestmark = pytest.mark.anyio


async def test_second_layouts_take_what_is_left_over(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2) as library:
        library.opener.seconds["a"] = 80
        held = await library.lease("a")
        await library.rest()
        assert library.opener.model("a").second_allowed
        library.opener.compute(held.engine)  # type: ignore[arg-type]
        assert library.used_bytes == library.opener.open_bytes == ONE_MODEL + 80
        await library.lease("b")
        assert not library.opener.model("a").second_allowed
        assert library.used_bytes == library.opener.open_bytes == 2 * ONE_MODEL
        assert library.opener.model("a").page_outs == 80
        library.leases[-1].release()
        await library.manager.unload("b")
        assert library.opener.model("a").second_allowed


async def test_second_layouts_of_idle_models_leave_before_those_in_use(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=4) as library:
        library.opener.seconds |= {"a": 80, "b": 80}
        for name in "ab":
            lease = await library.lease(name)
            await library.rest()
            library.opener.compute(lease.engine)  # type: ignore[arg-type]
        library.leases[0].release()
        await library.lease("c")
        second = {model.name: model.second_resident_bytes for model in library.opener.models}
        assert second == {"a": 0, "b": 80, "c": 0}
        assert library.open_names == {"a", "b", "c"}
        await library.use("a")
        assert not library.opener.model("a").second_allowed


async def test_streaming_ends_when_there_is_room(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2) as library:
        library.opener.sizes["a"] = 400
        held = await library.lease("a")
        assert library.status("a").state == "streaming"
        library.manager._budget.configured = 350
        library.manager.turn()
        await library.rest()
        assert library.status("a").resident_limit_bytes == 350 - VOCABULARY_BYTES - CONTEXT_BYTES
        library.manager._budget.configured = 1000
        library.manager.turn()
        await library.rest()
        assert (library.status("a").state, library.status("a").resident_limit_bytes) == ("open", None)
        assert library.used_bytes == 400 + VOCABULARY_BYTES + CONTEXT_BYTES
        held.release()
        assert [move[2] for move in moves(library, "limit")] == [320, None]


async def test_a_lower_budget_lets_requests_finish(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2, max_wait_seconds=10) as library:
        first, second = await library.lease("a"), await library.lease("b")
        library.manager._budget.configured = ONE_MODEL + 100
        library.manager.turn()
        late = library.request("a")
        await library.rest()
        assert late.waits
        assert not moves(library, "limit")
        second.release()
        await library.rest()
        assert late.lease is not None
        assert library.used_bytes <= ONE_MODEL + 100
        first.release()


async def test_a_lower_budget_does_not_wait_for_ever(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2, max_wait_seconds=10) as library:
        held = [await library.lease("a"), await library.lease("b")]
        library.manager._budget.configured = ONE_MODEL + 80
        library.manager.turn()
        late = library.request("a")
        await library.pass_time(10)
        assert library.used_bytes <= ONE_MODEL + 80
        assert library.names_in("streaming") == {"a"}
        assert late.lease is not None
        library.manager._budget.configured = 2 * ONE_MODEL
        library.manager.turn()
        await library.rest()
        assert library.names_in("open") == {"a", "b"}
        for lease in held:
            lease.release()


async def test_an_idle_model_streams_after_the_budget_was_lowered(open_library: OpenLibrary) -> None:
    async with open_library("a", budget=2) as library:
        await library.use("a")
        library.manager._budget.configured = 100
        library.manager.turn()
        await library.rest()
        assert library.used_bytes <= 100
        held = await library.lease("a")
        assert library.opener.opens == {"a": 1}
        assert library.status("a").state == "streaming"
        assert library.used_bytes <= 100
        held.release()


async def test_pressure_from_outside(open_library: OpenLibrary) -> None:
    async with open_library("abc", budget=3) as library:
        for name in "ab":
            await library.use(name)
        held = await library.lease("c")
        await library.manager.relieve(80)
        assert library.used_bytes <= 3 * ONE_MODEL - 80
        assert library.status("a").warm_share == 0.25
        assert library.open_names == {"a", "b", "c"}
        held.release()
        # What was given up is not taken again at once.
        other = library.request("a")
        await library.rest()
        assert other.lease is not None
        assert library.used_bytes <= 3 * ONE_MODEL - 80
        other.release()
        for _ in range(4):
            await library.pass_time(30)
        for name in "abc":
            library.opener.compute((await library.lease(name)).engine)  # type: ignore[arg-type]
        assert library.used_bytes == library.opener.open_bytes == 3 * ONE_MODEL


async def test_pressure_makes_models_in_use_stream_at_once(open_library: OpenLibrary) -> None:
    async with open_library("a", budget=1) as library:
        held = await library.lease("a")
        await library.manager.relieve(50)
        assert library.status("a").resident_limit_bytes == 50
        assert library.opener.open_bytes == ONE_MODEL - 50
        for _ in range(4):
            await library.pass_time(30)
        assert library.status("a").state == "open"
        held.release()


async def test_a_model_waits_for_pressure_to_end(open_library: OpenLibrary) -> None:
    async with open_library("a", budget=1) as library:
        await library.use("a")
        await library.manager.relieve(ONE_MODEL - 20)
        request = library.request("a")
        await library.rest()
        assert request.waits
        for _ in range(4):
            await library.pass_time(30)
        assert request.lease is not None
        request.release()


async def test_relief_on_the_way_is_waited_for(open_library: OpenLibrary) -> None:
    async with open_library("ab", budget=2) as library:
        for name in "ab":
            await library.use(name)
        go_on = library.opener.hold_move("a")
        library.tasks.start_soon(library.manager.relieve, 50)
        await library.rest()
        await library.manager.relieve(50)
        go_on()
        await library.rest()
        assert library.used_bytes == 2 * ONE_MODEL - 50
        await library.manager.close()
        await library.manager.relieve(50)


async def test_a_little_more_is_freed_than_is_wanted(open_library: OpenLibrary) -> None:
    unit = 2**20
    async with open_library("abc", budget=200 * unit / ONE_MODEL) as library:
        library.opener.sizes |= dict.fromkeys("abc", 90 * unit)
        for name in "abc":
            await library.use(name)
        # Of 200 MiB a 64th, in whole MiB, beside the 70 that are missing.
        kept = [move[2] for move in moves(library, "page out")]
        assert sum(90 * unit - keep for keep in kept if isinstance(keep, int)) // unit == 73


async def test_a_limit_that_cannot_be_set_is_not_counted(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("a", budget=2, max_wait_seconds=10) as library:
        refusals = []

        async def refuse(weights: object, limit_bytes: int | None) -> None:
            refusals.append(limit_bytes)
            raise OSError(errno.EAGAIN, "no thread")

        held = await library.lease("a")
        library.opener.compute(held.engine)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(library.opener, "set_resident_limit", refuse)
            library.manager._budget.configured = ONE_MODEL - 20
            library.manager.turn()
            await library.pass_time(10)
            assert (library.status("a").state, len(refusals)) == ("open", 1)
            assert library.used_bytes == library.opener.open_bytes == ONE_MODEL
        held.release()
        again = await library.lease("a")
        assert library.status("a").state == "streaming"
        assert library.used_bytes <= ONE_MODEL - 20
        again.release()


async def test_idle_weights_that_cannot_get_another_limit_are_opened_anew(
    open_library: OpenLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_library("a", budget=2) as library:
        refusals = []

        async def refuse(weights: object, limit_bytes: int | None) -> None:
            refusals.append(limit_bytes)
            raise OSError(errno.EAGAIN, "no thread")

        await library.use("a")
        library.manager._budget.configured = 100
        library.manager.turn()
        await library.rest()
        monkeypatch.setattr(library.opener, "set_resident_limit", refuse)
        held = await library.lease("a")
        assert (library.status("a").state, len(refusals)) == ("streaming", 1)
        assert library.opener.opens == {"a": 2}
        assert library.used_bytes <= 100
        held.release()
