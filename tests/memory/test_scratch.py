from __future__ import annotations

from shardload.memory.scratch import scratch


def test_memory_is_zeroed_and_writable() -> None:
    memory = scratch(100_000)
    assert (len(memory), memory.nbytes, memory.readonly) == (100_000, 100_000, False)
    assert not any(memory)
    memory[99_999] = 7
    assert memory[99_999] == 7
    assert len(scratch(0)) == 0
