"""Finds, writes, prunes and checks entries of a store at random, as one of several processes that do."""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

from shardload.shards.entry import PackedKey
from shardload.shards.store import Store

ENTRIES, ROUNDS, NBYTES = 12, 150, 5000


def key(number: int) -> PackedKey:
    return PackedKey(str(number), "Q4_K", (number + 1,), "CPU_REPACK", "build")


def content(number: int) -> bytes:
    return bytes([number]) * (NBYTES + number)


def main(directory: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        store = Store(directory, 8 * NBYTES, reserve_bytes=0)
        number = chance.randrange(ENTRIES)
        match chance.randrange(6):
            case 0 | 1 | 2:
                entry = store.write(key(number), memoryview(content(number)))
                assert entry.nbytes == NBYTES + number
            case 3:
                there = store.find(key(number))
                with store.hold([there] if there is not None else []):
                    store.prune(4 * NBYTES)
            case 4:
                assert not store.verify().damaged
            case _:
                for other in range(ENTRIES):
                    if (there := store.find(key(other))) is not None:
                        with contextlib.suppress(FileNotFoundError):
                            assert there.path.read_bytes() == content(other)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
