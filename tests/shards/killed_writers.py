"""Writes an entry in child processes that die at every call they make, one call later each time.

Prints how many died, and how many entries there were after that; fails where a store is found in pieces.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from shardload.shards import objects, part
from shardload.shards.entry import PackedKey
from shardload.shards.store import Store

KEY = PackedKey("d", "Q4_K", (256, 4), "CPU_REPACK", "build")
DATA = bytes(range(256)) * 4
MOST_CALLS = 5000


def die_at(call: int) -> None:
    """Kill this process as it is about to make its ``call``-th call of something that is not Python."""
    left = call

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event == "c_call":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def died(directory: Path, call: int, data: bytes) -> bool:
    child = os.fork()
    if child == 0:
        die_at(call)
        Store(directory, reserve_bytes=0).write(KEY, memoryview(data))
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def check(directory: Path) -> bool:
    """Whether the next start finds the entry; nothing else may be there."""
    store = Store(directory, reserve_bytes=0)
    entry = store.find(KEY)
    folder = directory / "packed"
    names = sorted(os.listdir(folder)) if folder.exists() else []
    assert names == ([KEY.id, f"{KEY.id}.json"] if entry else []), names
    if entry is not None:
        assert entry.path.read_bytes() == DATA
        store.clear()
    return entry is not None


def main(directory: Path) -> None:
    objects.CHUNK_BYTES = part.CHUNK_BYTES = 300
    found = call = 0
    for call in range(1, MOST_CALLS):
        alive = not died(directory, call, DATA)
        whole = check(directory)
        found += whole
        if alive:
            assert whole
            break
    print(json.dumps({"died": call - 1, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
