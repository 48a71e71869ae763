"""What may befall the store, parked conversations and the budget; clients get the same text as ever."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from packable import rename_over
from served_site import PATIENCE_SECONDS, PROMPT, SEEDS, Server, Site, flip, packed_bytes

from shardload.shards.part import SUFFIX as PART_SUFFIX

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be removed or replaced there"),
]

NAMES = tuple(SEEDS)
LONG_PROMPT, LONG_TOKENS = f"Once {PROMPT}", 1000
LEAST_CACHED_TOKENS = 64


@dataclass
class Known:
    """A site whose models are packed, and what its models said before anything befell them."""

    site: Site
    cold: dict[str, str] = field(default_factory=dict)
    """To a prompt that was computed."""
    warm: dict[str, str] = field(default_factory=dict)
    """To a prompt of which all but a token was there."""
    long: str = ""
    taken_bytes: int = 0
    """What one model takes."""


@contextmanager
def folder_on_disk(tmp_path: Path) -> Iterator[Path]:
    """Pages of a file in ``/tmp`` may have nowhere to go."""
    parent = Path("/var/tmp")
    with TemporaryDirectory(dir=parent if parent.is_dir() else tmp_path, prefix="shardload-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    with folder_on_disk(tmp_path_factory.mktemp("site")) as folder:
        found = Known(Site(folder))
        with found.site.server() as server:
            for name in NAMES:
                found.cold[name] = server.say(name).text
                found.warm[name] = server.say(name).text
            for name in NAMES:
                server.until_packed(name)
            state = server.state("ada")
            found.taken_bytes = state["private_bytes"] + state["size_bytes"]
            server.do("unload", "ada")
            found.long = server.say("ada", LONG_PROMPT, max_tokens=LONG_TOKENS, ignore_eos=True).text
        assert len(set(found.cold.values())) == len(NAMES)
        found.site.assert_store_is_whole()
        shutil.rmtree(found.site.parked)
        yield found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Site]:
    """A site that no server has seen yet."""
    with folder_on_disk(tmp_path) as folder:
        yield Site(folder)


@pytest.fixture
def site(known: Known) -> Iterator[Site]:
    """The site that all know, with nothing parked."""
    yield known.site
    known.site.configure()
    shutil.rmtree(known.site.parked, ignore_errors=True)


def test_killed_while_packing(known: Known, fresh: Site) -> None:
    for function, call in (
        ("shardload.shards.objects:write_whole", 3),
        ("shardload.shards.part:PartFile.sync", 8),
    ):
        with fresh.server(dies_at=(function, call)) as server:
            with suppress(httpx.TransportError):
                assert server.say("ada").text == known.cold["ada"]
            server.until_killed()
        assert fresh.unfinished()
    with fresh.server() as server:
        assert server.say("ada").text == known.cold["ada"]
        server.until_packed("ada")
        assert server.say("ada").text == known.warm["ada"]
    fresh.assert_store_is_whole()


def test_killed_while_pages_leave(known: Known, site: Site) -> None:
    site.configure(more=f"[memory]\nbudget = {known.taken_bytes * 11 // 10}\n")
    with site.server(dies_at=("shardload.memory.eviction:page_out", 3)) as server:
        with suppress(httpx.TransportError):
            for name in NAMES * 50:
                assert server.say(name).text in (known.cold[name], known.warm[name])
        server.until_killed()
    with site.server() as server:
        for name in (*NAMES, *NAMES):
            assert server.say(name).text in (known.cold[name], known.warm[name])
        assert any(server.state(name)["page_out_bytes"] for name in NAMES)
    site.assert_store_is_whole()


def test_killed_while_a_conversation_is_parked(known: Known, site: Site) -> None:
    with site.server(dies_at=("shardload.shards.part:PartFile.write", 2)) as server:
        assert server.say("ada").text == known.cold["ada"]
        with suppress(httpx.TransportError):
            server.do("unload", "ada")
        server.until_killed()
    assert [path.suffix for path in site.parked.iterdir()] == [PART_SUFFIX]
    with site.server() as server:
        assert server.say("ada") == (known.cold["ada"], 0)
    (parked,) = site.parked.iterdir()
    with site.server() as server:
        said = server.say("ada")
        assert said.text == known.warm["ada"]
        assert said.cached_tokens >= LEAST_CACHED_TOKENS
    assert parked.suffix == ".kv"


def test_a_damaged_parked_conversation(known: Known, site: Site) -> None:
    with site.server() as server:
        for name in NAMES:
            server.say(name)
    first, second = sorted(site.parked.iterdir())
    flip(first, first.stat().st_size // 2)
    flip(second, 100)
    with site.server() as server:
        for name in NAMES:
            assert server.say(name) == (known.cold[name], 0)
        for path in (first, second):
            (line,) = [line for line in server.log().splitlines() if path.name in line]
            assert "WARNING" in line
            assert line.endswith("the conversation will be computed again")
    with site.server() as server:
        said = server.say("ada")
        assert (said.text, said.cached_tokens >= LEAST_CACHED_TOKENS) == (known.warm["ada"], True)


def test_damaged_and_truncated_entries(known: Known, site: Site) -> None:
    flipped, cut, *_ = site.entries()
    flip(flipped, flipped.stat().st_size // 2)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size // 2)
    with site.server() as server:
        for name in NAMES:
            assert server.say(name).text == known.cold[name]
        for path in (flipped, cut):
            assert f"{path} was damaged, it is packed again when it is needed" in server.log()
        for name in NAMES:
            server.until_packed(name)
            assert server.say(name).text == known.warm[name]
    assert {flipped, cut} <= set(site.entries())
    site.assert_store_is_whole()


def test_the_store_goes_away_while_it_is_used(known: Known, fresh: Site) -> None:
    with fresh.server() as server:
        assert server.say("ada").text == known.cold["ada"]
        server.until_packed("ada")
        shutil.rmtree(fresh.store)
        shutil.rmtree(fresh.parked)
        assert server.say("ada").text == known.warm["ada"]
        assert server.say("bob").text == known.cold["bob"]
        server.until_packed("bob")
        server.do("unload", "ada")
        assert server.say("ada").text in (known.cold["ada"], known.warm["ada"])
        server.until_packed("ada")
    fresh.assert_store_is_whole()


def test_a_model_is_replaced_by_another_of_the_same_size_and_time(known: Known, fresh: Site) -> None:
    spare = fresh.folder / "spare"
    with fresh.server() as server:
        assert server.say("ada").text == known.cold["ada"]
        server.until_packed("ada")
        shutil.copyfile(fresh.model("ada"), spare)
        rename_over(fresh.model("ada"), fresh.model("bob"))
        assert server.say("ada") == (known.cold["bob"], 0)
        server.do("unload", "ada")
        rename_over(fresh.model("ada"), spare)
        assert server.say("ada") == (known.cold["ada"], 0)
        server.until_packed("ada")
    rename_over(fresh.model("ada"), fresh.model("bob"))
    with fresh.server() as server:
        assert server.say("ada") == (known.cold["bob"], 0)
        server.until_packed("ada")
    fresh.assert_store_is_whole()


def test_a_store_that_cannot_be_made(known: Known, fresh: Site) -> None:
    (fresh.folder / "file").write_bytes(b"")
    fresh.configure(store=fresh.folder / "file" / "store")
    with fresh.server() as server:
        assert server.say("ada").text == known.cold["ada"]
        server.until(lambda: "is not packed" in server.log())
        assert server.say("ada").text == known.warm["ada"]
        assert "Traceback" not in server.log()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="superusers may write everywhere")
def test_a_store_that_may_only_be_read(known: Known, site: Site) -> None:
    """What is there is used; a model that is not there is served all the same."""
    gone = site.entries()[0]
    gone.with_name(f"{gone.name}.json").unlink()
    gone.unlink()
    with site.read_only(), site.server(ordinary=True) as server:
        for name in NAMES:
            assert server.say(name).text == known.cold[name]
        server.until(lambda: "is not packed" in server.log())
        shares = [server.state(name)["packed_bytes"] / packed_bytes(site.model(name)) for name in NAMES]
        assert 0 < min(shares) < max(shares) == 1
        assert "Traceback" not in server.log()
    assert not gone.exists()
    with site.server() as server:
        for name in NAMES:
            server.say(name)
            server.until_packed(name)
    assert gone.exists()
    site.assert_store_is_whole()


def test_the_budget_is_lowered_while_a_request_runs(known: Known, site: Site) -> None:
    with site.server() as server:
        assert server.say("bob").text == known.cold["bob"]
        with reading(server, "ada") as events:
            text = next(events)
            site.configure(more=f"[memory]\nbudget = {known.taken_bytes * 3 // 2}\n")
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: "configuration taken over" in server.log())
            text += "".join(events)
        assert text == known.long
        server.until(lambda: "-> 200 by ada" in server.log())
        assert server.log().index("taken over") < server.log().index("-> 200 by ada")
        for name in (*NAMES, *NAMES):
            assert server.say(name).text in (known.cold[name], known.warm[name])


@contextmanager
def reading(server: Server, model: str) -> Iterator[Iterator[str]]:
    """The pieces of a long answer as they come."""
    body = {"model": model, "prompt": LONG_PROMPT, "temperature": 0, "max_tokens": LONG_TOKENS}
    with httpx.stream(
        "POST",
        f"{server.url}/v1/completions",
        json={**body, "ignore_eos": True, "stream": True},
        timeout=PATIENCE_SECONDS,
    ) as answer:
        data = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {"))
        yield (json.loads(text)["choices"][0]["text"] for text in data)


def test_two_servers_have_everything_in_common(known: Known, fresh: Site) -> None:
    def turns(server: Server, names: tuple[str, ...]) -> list[bool]:
        found = []
        for name in names * 3:
            found.append(server.say(name).text in (known.cold[name], known.warm[name]))
            server.do("unload", name)
        return found

    with fresh.server() as first, fresh.server() as second, ThreadPoolExecutor(2) as pool:
        both = pool.map(turns, (first, second), (NAMES, NAMES[::-1]))
        assert all(map(all, both))
        for server in (first, second):
            for name in NAMES:
                server.say(name)
                server.until_packed(name)
            assert "WARNING" not in server.log()
    fresh.assert_store_is_whole()
    packed = sum(packed_bytes(fresh.model(name)) for name in NAMES)
    assert sum(path.stat().st_size for path in fresh.entries()) == packed


def test_models_of_one_vocabulary_close_in_either_order(known: Known, site: Site) -> None:
    with site.server() as server:
        for closed, other in (NAMES, NAMES[::-1]):
            for name in NAMES:
                assert server.say(name).text in (known.cold[name], known.warm[name])
            server.do("unload", closed)
            assert server.say(other).text == known.warm[other]
            server.do("unload", other)
