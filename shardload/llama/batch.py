"""The arrays of one llama_decode call, allocated once and filled in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardload.engine.runner import Run


class Batch:
    """Room for a number of tokens; `fill` writes runs into it, ``native`` is what llama.cpp takes."""

    def __init__(self, ffi: Any, capacity_tokens: int, slots: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._tokens = np.zeros(capacity_tokens, np.int32)
        self._positions = np.zeros(capacity_tokens, np.int32)
        self._outputs = np.zeros(capacity_tokens, np.int8)
        self._slot_lists = np.zeros(capacity_tokens, np.uintp)
        self._counting = np.arange(capacity_tokens, dtype=np.int32)
        # Each token names the slots it belongs to by a pointer to a list: here to an element of this one.
        slot_numbers = np.arange(slots, dtype=np.int32)
        self._slot_addresses = [slot_numbers.ctypes.data + 4 * slot for slot in range(slots)]
        slot_counts = np.ones(capacity_tokens, np.int32)
        self.native = ffi.new("struct llama_batch *")[0]
        self._arrays: dict[str, NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": slot_counts,
            "seq_id": self._slot_lists,
            "logits": self._outputs,
        }
        self._keep = slot_numbers
        for name, array in self._arrays.items():
            kind = dict(ffi.typeof("struct llama_batch").fields)[name].type
            setattr(self.native, name, ffi.cast(kind, array.ctypes.data))
        # Elements of cffi arrays are cheaper to set one by one than those of numpy arrays.
        self._one_token = ffi.cast("int32_t *", self._tokens.ctypes.data)
        self._one_position = ffi.cast("int32_t *", self._positions.ctypes.data)
        self._one_output = ffi.cast("int8_t *", self._outputs.ctypes.data)
        self._one_slot_list = ffi.cast("uintptr_t *", self._slot_lists.ctypes.data)

    def fill(self, runs: Sequence[Run], *, every_row: bool = False) -> list[int]:
        """Write the runs; returns the places in the batch of the tokens with outputs, in order."""
        total = sum(len(run.tokens) for run in runs)
        if not 0 < total <= self._capacity_tokens:
            raise ValueError(f"a batch of {total} tokens; there is room for 1 to {self._capacity_tokens}")
        rows: list[int] = []
        at = 0
        for run in runs:
            if len(run.tokens) == 1:
                wanted = every_row or run.want != "none"
                self._one_token[at] = run.tokens[0]
                self._one_position[at] = run.start
                self._one_slot_list[at] = self._slot_addresses[run.slot]
                self._one_output[at] = wanted
                if wanted:
                    rows.append(at)
                at += 1
            else:
                at = self._fill_run(run, at, every_row, rows)
        self.native.n_tokens = at
        return rows

    def _fill_run(self, run: Run, at: int, every_row: bool, rows: list[int]) -> int:
        count = len(run.tokens)
        end = at + count
        self._tokens[at:end] = run.tokens
        np.add(self._counting[:count], run.start, out=self._positions[at:end])
        self._slot_lists[at:end] = self._slot_addresses[run.slot]
        every = every_row or run.want == "all"
        self._outputs[at:end] = every
        if every:
            rows.extend(range(at, end))
        elif run.want == "last" and count:
            self._outputs[end - 1] = True
            rows.append(end - 1)
        return end
