"""Finds, writes, prunes and checks entries of a store at random, as one of several processes that do."""

from __future__ import annotations

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
    keys = {key(number): number for number in range(ENTRIES)}
    for _ in range(ROUNDS):
        store = Store(directory, 8 * NBYTES, reserve_bytes=0)
        number = chance.randrange(ENTRIES)
        match chance.randrange(6):
            case 0 | 1 | 2:
                entry = store.write(key(number), memoryview(content(number)))
                assert entry.nbytes == NBYTES + number
            case 3:
                with store.hold(store.find([key(number)]).values()):
                    store.prune(4 * NBYTES)
            case 4:
                assert not store.verify().damaged
            case _:
                for found, entry in store.find(keys).items():
                    try:
                        data = entry.path.read_bytes()
                    except FileNotFoundError:
                        continue
                    assert data == content(keys[found])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
