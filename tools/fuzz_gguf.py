"""Mutate GGUF headers and open them: nothing but a GGUFError may come of it, in bounded memory and time.

    python tools/fuzz_gguf.py --count 20000 --seed 1

The test suite runs a short form of the same.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from shardload.errors import GGUFError
from shardload.gguf import GGUFFile, MetadataArray

SLOWEST_ALLOWED_SECONDS = 5.0
PEAK_BASE_BYTES = 2 * 2**20
PEAK_PER_FILE_BYTE = 64
EXTREMES = (
    0,
    1,
    7,
    8,
    31,
    255,
    256,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def text(value: str) -> bytes:
    """A string as the format has it."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, count: int, payload: bytes) -> bytes:
    """An array value."""
    return struct.pack("<IQ", kind, count) + payload


def key(name: str, kind: int, value: bytes) -> bytes:
    """A key with its value."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, ne: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's entry."""
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def seed_file(version: int, alignment: int) -> bytes:
    """A small valid file with every kind of value and several kinds of tensors."""
    keys = [
        key("general.architecture", 8, text("llama")),
        key("general.alignment", 4, struct.pack("<I", alignment)),
        key("llama.context_length", 4, struct.pack("<I", 64)),
        *(key(f"n{kind}", kind, b"\1" * size) for kind, size in enumerate((1, 1, 2, 2, 4, 4, 4, 1))),
        *(key(f"n{kind}", kind, b"\2" * 8) for kind in (10, 11, 12)),
        key("tokenizer.ggml.tokens", 9, array(8, 5, b"".join(map(text, ("<s>", "", "a", "b" * 300, "é"))))),
        key("tokenizer.ggml.scores", 9, array(6, 3, b"\0" * 12)),
        key("nested", 9, array(9, 2, array(8, 1, text("x")) + array(0, 3, b"abc"))),
        key("tokenizer.chat_template", 8, text("{{ messages }}")),
    ]
    tensors, offset = [], 0
    for name, ne, kind, size in (
        ("token_embd.weight", (4, 3), 0, 48),
        ("blk.0.q", (32, 2), 8, 68),
        ("b", (256,), 12, 144),
    ):
        tensors.append(tensor(name, ne, kind, offset))
        offset = -(-(offset + size) // alignment) * alignment
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    return head + b"\0" * (-len(head) % alignment + offset)


SEEDS = (seed_file(3, 32), seed_file(2, 8), seed_file(3, 256))


def flip(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Change one byte."""
    data[at : at + 1] = bytes([draw(st.integers(0, 255))])


def extreme(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Overwrite a number with one at the edge of its range."""
    width = draw(st.sampled_from((1, 2, 4, 8)))
    value = draw(st.sampled_from(EXTREMES)) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


def truncate(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Cut the file short."""
    del data[at:]


def splice(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Replace a stretch with one from another place or another file."""
    other = draw(st.sampled_from(SEEDS))
    start, length, removed = (draw(st.integers(0, limit)) for limit in (len(other), 64, 64))
    data[at : at + removed] = other[start : start + length]


def repeat(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Say a stretch twice."""
    data[at:at] = data[at : at + draw(st.integers(1, 128))]


def scramble(draw: st.DrawFn, data: bytearray, at: int) -> None:
    """Put in random bytes."""
    data[at : at + 16] = draw(st.binary(max_size=32))


MUTATIONS: tuple[Callable[[st.DrawFn, bytearray, int], None], ...] = (
    flip,
    extreme,
    extreme,
    truncate,
    splice,
    repeat,
    scramble,
)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A valid file with one to four mutations."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        last = max(0, len(data) - 1)
        # Most mutations behind the magic and the version: before them every file is refused alike.
        at = draw(st.integers(min(8, last), last) if draw(st.integers(0, 9)) else st.integers(0, last))
        draw(st.sampled_from(MUTATIONS))(draw, data, at)
    return bytes(data)


def exercise(path: Path) -> str:
    """Open a file and look at everything in it; returns what came of it."""
    try:
        with GGUFFile(path) as file:
            for value in file.metadata.values():
                if isinstance(value, MetadataArray):
                    value.tolist()
                    for index in range(min(3, len(value))):
                        value[index]
            for name in file.tensors:
                np.count_nonzero(file.tensor(name))
            repr((file.block_bytes(), file.quantization, file.parameter_count, file.vocabulary_size))
            repr((file.name, file.file_type, file.context_length, file.chat_template()))
    except GGUFError as error:
        return type(error).__name__
    return "opened"


def check(data: bytes, path: Path) -> tuple[str, float]:
    """Exercise one file; returns the outcome and the seconds. Raises for memory out of proportion."""
    path.write_bytes(data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        outcome = exercise(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > PEAK_BASE_BYTES + PEAK_PER_FILE_BYTE * len(data):
        raise AssertionError(f"a file of {len(data)} bytes took {peak} bytes of memory")
    return outcome, time.perf_counter() - started


def fuzz(count: int, number: int, folder: Path) -> tuple[Counter[str], float]:
    """Run ``count`` cases; returns the outcomes and the slowest case in seconds."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated_files())
    def run(data: bytes) -> None:
        nonlocal slowest
        outcome, seconds = check(data, folder / "mutated.gguf")
        outcomes[outcome] += 1
        slowest = max(slowest, seconds)

    run()
    return outcomes, slowest


def main() -> int:
    """Run the fuzzer as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, slowest = fuzz(arguments.count, arguments.seed, Path(folder))
    seconds = time.perf_counter() - started
    print(
        f"{outcomes.total()} files in {seconds:.0f} s, the slowest {slowest * 1000:.1f} ms: {dict(outcomes)}"
    )
    return 0 if slowest <= SLOWEST_ALLOWED_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
