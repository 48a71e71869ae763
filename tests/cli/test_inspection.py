from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.gguf import TensorInfo
from shardload.gguf.constants import TENSOR_TYPES
from shardload_server.cli.inspection import Residency, bar_cells

PAGE_BYTES = 16
BYTE = next(kind for kind in TENSOR_TYPES.values() if kind.name == "I8")

pages_of_a_file = st.lists(st.booleans(), min_size=1, max_size=20)


def tensor(offset: int, length: int, part: int = 0) -> TensorInfo:
    return TensorInfo("blk.0.w", BYTE, (length,), offset, length, part)


@given(pages_of_a_file, st.data())
def test_resident_bytes_counts_bytes_of_pages(pages: list[bool], data: st.DataObject) -> None:
    size = len(pages) * PAGE_BYTES
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    found = Residency([np.array(pages)], PAGE_BYTES).resident_bytes(0, offset, length)
    assert found == sum(pages[byte // PAGE_BYTES] for byte in range(offset, offset + length))


@given(pages_of_a_file, st.integers(1, 40), st.data())
def test_cells_share_out_all_resident_bytes(pages: list[bool], count: int, data: st.DataObject) -> None:
    size = len(pages) * PAGE_BYTES
    border = data.draw(st.integers(1, size - 1))
    tensors = [tensor(0, border), tensor(border, size - border)]
    cells = bar_cells(tensors, Residency([np.array(pages)], PAGE_BYTES), count)
    widths = np.diff([size * cell // len(cells) for cell in range(len(cells) + 1)])
    assert all(0 <= cell <= 1 for cell in cells)
    assert float(np.dot(cells, widths)) == pytest.approx(sum(pages) * PAGE_BYTES)


def test_a_tensor_smaller_than_the_bar_has_a_cell_per_byte() -> None:
    residency = Residency([np.array([True])], PAGE_BYTES)
    assert bar_cells([tensor(0, 3)], residency) == (1.0, 1.0, 1.0)


def test_parts_of_a_split_model_are_kept_apart() -> None:
    residency = Residency([np.array([True]), np.array([False])], PAGE_BYTES)
    assert residency.resident_bytes(0, 0, 8) == 8
    assert residency.resident_bytes(1, 0, 8) == 0
    assert bar_cells([tensor(0, 8), tensor(0, 8, part=1)], residency, 2) == (1.0, 0.0)


def test_one_unknown_file_makes_all_unknown() -> None:
    assert not Residency([np.array([True]), None], PAGE_BYTES).known
