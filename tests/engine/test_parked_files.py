"""Parked states on disk: whole, private, within their limit, or computed again."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardload.engine.parked_files import FileFacts, ParkedFiles, file_name

Tokens = NDArray[np.int32]


def tokens_of(*numbers: int) -> Tokens:
    return np.asarray(numbers, np.int32)


def write(files: ParkedFiles, tokens: Tokens, state: bytes, key: str = "key", used: float = 1.0) -> str:
    name = files.write(key, "kind", tokens, memoryview(state), used)
    assert name is not None
    return name


def facts_of(files: ParkedFiles, name: str, key: str = "key") -> FileFacts:
    facts = files.facts(name, key)
    assert facts is not None
    return facts


@pytest.fixture
def files(tmp_path: Path) -> ParkedFiles:
    return ParkedFiles(tmp_path / "deep" / "parked", 10**6)


def test_what_is_written_is_read(files: ParkedFiles) -> None:
    name = write(files, tokens_of(1, 2, 70000), b"state" * 1000)
    assert name == file_name("key", "kind", tokens_of(1, 2, 70000))
    assert (files.names("key"), files.names("other")) == ([name], [])
    facts = facts_of(files, name)
    assert (facts.name, facts.key, facts.kind, facts.state_bytes) == (name, "key", "kind", 5000)
    assert facts.tokens.tolist() == [1, 2, 70000]
    assert facts.last_used == 1.0
    state = files.read(facts)
    assert state is not None
    assert state.tobytes() == b"state" * 1000
    assert os.stat(files.directory / name).st_mtime > 1.0, "reading is a use"
    files.remove(name)
    files.remove(name)
    assert files.names("key") == []
    assert files.read(facts) is None


def test_files_are_for_their_user_alone(files: ParkedFiles) -> None:
    name = write(files, tokens_of(1), b"secret")
    assert stat.S_IMODE(os.stat(files.directory / name).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(files.directory).st_mode) == 0o700
    assert os.listdir(files.directory) == [name]


def test_the_oldest_make_room(tmp_path: Path) -> None:
    files = ParkedFiles(tmp_path, 25_000)
    first, second = (write(files, tokens_of(number), bytes(10_000), used=number) for number in (2, 1))
    third = write(files, tokens_of(3), bytes(10_000), used=3)
    assert set(files.names("key")) == {first, third}
    assert second not in files.names("key")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 25_000
    # Nothing that was used later goes for what was used earlier, and nothing for what never fits.
    assert files.write("key", "kind", tokens_of(4), memoryview(bytes(10_000)), 1.5) is None
    assert files.write("key", "kind", tokens_of(4), memoryview(bytes(30_000)), 9.0) is None
    assert set(files.names("key")) == {first, third}


def test_a_file_of_the_same_tokens_is_replaced(files: ParkedFiles) -> None:
    names = {write(files, tokens_of(1, 2), state) for state in (b"one", b"other")}
    (name,) = names
    state = files.read(facts_of(files, name))
    assert state is not None
    assert state.tobytes() == b"other"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_no_damage_passes(tmp_path: Path, data: st.DataObject) -> None:
    files = ParkedFiles(tmp_path, 10**6)
    name = write(files, tokens_of(5, 6, 7), bytes(range(200)))
    facts = facts_of(files, name)
    path = files.directory / name
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow", "replace"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "grow":
            content += data.draw(st.binary(min_size=1, max_size=50))
        case _:
            content[:] = data.draw(st.binary(max_size=400))
    path.write_bytes(content)
    found = files.facts(name, "key")
    assert files.read(found or facts) is None
    assert not path.exists(), "what is damaged is not looked at again"


def test_damage_is_a_line_in_the_log(files: ParkedFiles, caplog: pytest.LogCaptureFixture) -> None:
    name = write(files, tokens_of(1), b"state" * 100)
    facts = facts_of(files, name)
    with (files.directory / name).open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"X")
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        assert files.read(facts) is None
    (record,) = caplog.records
    assert name in record.getMessage()
    assert "computed again" in record.getMessage()


def test_a_file_under_anothers_name_is_not_believed(files: ParkedFiles) -> None:
    mine, other = write(files, tokens_of(1, 2), b"mine"), write(files, tokens_of(3, 4), b"other")
    facts = facts_of(files, mine)
    os.replace(files.directory / other, files.directory / mine)
    assert files.read(facts) is None
    strange = write(files, tokens_of(1), b"state", key="strange")
    os.replace(files.directory / strange, files.directory / mine)
    assert files.facts(mine, "key") is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_files_of_others_are_left_alone(
    files: ParkedFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = write(files, tokens_of(1), b"state")
    facts = facts_of(files, name)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with caplog.at_level(logging.WARNING, "shardload.engine"):
        assert files.facts(name, "key") is None
    assert "was not written by this user" in caplog.text
    with pytest.raises(PermissionError):
        files.read(facts)
    assert (files.directory / name).exists()


def test_links_are_not_followed(files: ParkedFiles) -> None:
    name = write(files, tokens_of(1), b"state")
    facts = facts_of(files, name)
    target = files.directory.parent / "elsewhere"
    os.replace(files.directory / name, target)
    (files.directory / name).symlink_to(target)
    assert files.facts(name, "key") is None
    with pytest.raises(OSError, match=name):
        files.read(facts)


def test_leftovers_of_the_dead_are_removed_and_of_the_living_are_not(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    dead, living = tmp_path / ".a.part", tmp_path / ".b.part"
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ParkedFiles(tmp_path, 100)
        assert (dead.exists(), living.exists()) == (False, True)
    ParkedFiles(tmp_path, 100)
    assert not living.exists()


def test_a_directory_that_vanished_is_made_again(files: ParkedFiles) -> None:
    files.directory.rmdir()
    name = write(files, tokens_of(1), b"state")
    assert files.names("key") == [name]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from shardload.engine.parked_files import ParkedFiles
files = ParkedFiles(Path(sys.argv[1]), 2**40)
print("ready", flush=True)
for number in range(10**6):
    state = memoryview(bytes([number % 256]) * 3_000_000)
    files.write("key", "kind", np.asarray([number], np.int32), state, 1.0)
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_whole_files_only(tmp_path: Path) -> None:
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(2 + attempt):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    files = ParkedFiles(tmp_path, 2**40)
    names = files.names("key")
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert names
    for name in names:
        facts = facts_of(files, name)
        state = files.read(facts)
        assert state is not None
        assert state.tobytes() == bytes([int(facts.tokens[0]) % 256]) * 3_000_000
