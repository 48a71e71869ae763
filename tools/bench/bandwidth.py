"""How fast memory gives its bytes to all threads at once: no decode is faster than reading the weights."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

PASSES = 12


def read_bytes_per_second(nbytes: int, threads: int) -> float:
    """The best of some passes over that much memory, each thread with its part."""
    parts = np.array_split(np.ones(nbytes // 8, np.uint64), threads)
    fastest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            for _total in pool.map(np.sum, parts):
                pass
            fastest = min(fastest, time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / fastest
