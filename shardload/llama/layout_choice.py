"""Which order of bytes a step reads: measured once for each type, build, CPU and number of threads."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from shardload.folders import cache_folder
from shardload.llama.calibrate import MEASURED
from shardload.shards.layouts import Layout, Speeds, decode_tables, machine_key
from shardload.shards.measured import add_speeds, read_table

logger = logging.getLogger("shardload.llama")

MEASURE_SECONDS = 300
CALM_SECONDS = 2.0
POLL_SECONDS = 0.1


class LayoutChoice:
    """The remembered measurements, and the choices that follow from them. Any thread.

    ``build`` names the build of llama.cpp and the CPU. Until a type was measured its packed order is read.
    """

    def __init__(self, path: Path, build: str, threads: int) -> None:
        self.path, self._key, self._threads = path, machine_key(build, threads), threads
        self._lock = threading.Lock()
        self._failed: set[str] = set()
        self.table = read_table(path, self._key)

    def for_types(self, weights: Mapping[str, int]) -> Callable[[int], Layout]:
        """The choice for a model with so many bytes of each type that has both orders."""
        chosen: dict[int, Layout] = {}
        known = self.table

        def choose(tokens: int) -> Layout:
            nonlocal known
            if known is not self.table:
                known = self.table
                chosen.clear()
            layout = chosen.get(tokens)
            if layout is None:
                layout = chosen[tokens] = known.choose(weights, tokens)
            return layout

        return choose

    def measure(
        self, types: Iterable[str], *, is_busy: Callable[[], bool], stops: Callable[[], bool]
    ) -> None:
        """Measure what of some types is missing, one at a time, in the pauses of the computation.

        Takes about two seconds for each; what is disturbed is given up at once, and begun again later.
        """
        for name in self.table.missing(types):
            if name in self._failed:
                continue
            while _calm(is_busy, stops):
                measured = _measure_in_child(name, self._threads, lambda: is_busy() or stops())
                if measured is not None:
                    self._failed.update([] if measured else [name])
                    self._remember(measured)
                    break

    def measure_now(self, types: Iterable[str]) -> None:
        """Measure types, known ones as well, whatever else goes on."""
        for name in types:
            self._remember(_measure_in_child(name, self._threads) or {})

    def _remember(self, measured: Mapping[str, Speeds]) -> None:
        if measured:
            with self._lock:
                self.table = self.table.with_speeds(add_speeds(self.path, self._key, measured).speeds)


def _calm(is_busy: Callable[[], bool], stops: Callable[[], bool]) -> bool:
    """Wait until nothing was computed for a while; False to give up."""
    calm_since = time.monotonic()
    while time.monotonic() - calm_since < CALM_SECONDS:
        if stops():
            return False
        time.sleep(POLL_SECONDS)
        if is_busy():
            calm_since = time.monotonic()
    return not stops()


def _measure_in_child(
    name: str, threads: int, stops: Callable[[], bool] = lambda: False
) -> Mapping[str, Speeds] | None:
    """Measure a type in a process of its own: its compute threads do not stay, whatever becomes of them.

    None if it was stopped, and nothing where it failed or where the type has one order only.
    """
    command = [sys.executable, "-m", "shardload.llama.calibrate", "--threads", str(threads), name]
    try:
        output = _output_of(command, stops)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the orders of %s weights could not be measured: %s", name, error)
        return {}
    if output is None:
        return None
    tables = decode_tables(output)
    return tables[MEASURED].speeds if MEASURED in tables else {}


def _output_of(command: Sequence[str], stops: Callable[[], bool]) -> bytes | None:
    """What a command prints; None if it was stopped. Raises OSError and SubprocessError."""
    ends = time.monotonic() + MEASURE_SECONDS
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            while not stops():
                try:
                    output, _ = child.communicate(timeout=POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    if time.monotonic() > ends:
                        raise
                    continue
                if child.returncode:
                    raise subprocess.CalledProcessError(child.returncode, list(command))
                return output
            return None
        finally:
            child.kill()


def default_path() -> Path:
    """Where measurements are remembered."""
    return cache_folder() / "layouts.json"
