from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from shardload.llama.placed import Layouts, Packing, PlacedTensor
from shardload.memory import Range
from shardload.shards.layouts import Layout

SECONDS = 30
PLAIN, PACKED, KERNELS = 1, 2, 3


@dataclass
class Record:
    """llama.cpp's record of a tensor, as far as it is pointed somewhere."""

    words: list[tuple[int, int, int]] = field(default_factory=list)

    def point(self, data: int, buffer: int, extra: int) -> None:
        self.words.append((data, buffer, extra))

    @property
    def data(self) -> int:
        return self.words[-1][0]


def placed(
    number: int, *, packed: bool = True, stored: bool = True, plain_buffer: int = PLAIN
) -> PlacedTensor:
    tensor: Any = Record()
    file, private = Range(1000 * number, 100), Range(1000 * number + 200, 100)
    place = Range(1000 * number + 400, 100) if stored else private
    packing = Packing("CPU_REPACK", file, private, place, PACKED, KERNELS) if packed else None
    return PlacedTensor(tensor, f"t{number}", "q4_K", 12, (256,), file, packing, plain_buffer)


def record(tensor: PlacedTensor) -> Record:
    found: Any = tensor.tensor
    assert isinstance(found, Record)
    return found


def test_a_tensor_is_shown_in_either_order() -> None:
    tensor = placed(1)
    tensor.show("file")
    tensor.show("packed")
    assert record(tensor).words == [(1000, PLAIN, 0), (1400, PACKED, KERNELS)]


def test_a_tensor_of_one_order_is_left_alone() -> None:
    tensor = placed(1, packed=False)
    tensor.show("packed")
    tensor.show("file")
    assert record(tensor).words == []


def test_what_nobody_packed_yet_is_read_from_the_file() -> None:
    tensor = placed(1)
    assert tensor.packing is not None
    tensor.packing.place = None
    tensor.show("packed")
    assert record(tensor).words == [(1000, PLAIN, 0)]
    assert (tensor.packing.is_private, tensor.packing.stored) == (False, None)


def test_without_a_known_buffer_there_is_no_other_order() -> None:
    tensor = placed(1, plain_buffer=0)
    tensor.show("file")
    assert record(tensor).words == []
    assert not Layouts([tensor, placed(2)]).both
    assert Layouts([placed(1), placed(2, packed=False, plain_buffer=0)]).both
    assert not Layouts([placed(1, packed=False)]).both


def test_private_bytes_are_in_no_file() -> None:
    private, stored = placed(1, stored=False).packing, placed(1).packing
    assert private is not None
    assert stored is not None
    assert (private.is_private, private.stored) == (True, None)
    assert (stored.is_private, stored.stored) == (False, Range(1400, 100))


@pytest.mark.parametrize(
    ("wanted", "pointed"), [(["packed", "packed"], 0), (["file", "file"], 1), (["file", "packed"], 2)]
)
def test_tensors_are_pointed_where_a_step_wants_another_order(wanted: list[Layout], pointed: int) -> None:
    tensors = [placed(1), placed(2)]
    layouts = Layouts(tensors)
    for layout in wanted:
        with layouts.computing(layout):
            assert layouts.shown == layout
    assert [len(record(tensor).words) for tensor in tensors] == [pointed, pointed]


def test_a_second_step_at_the_same_time_takes_what_the_first_chose() -> None:
    layouts = Layouts([placed(1)])
    with layouts.computing("file"), layouts.computing("packed"):
        assert layouts.shown == "file"
    with layouts.computing("packed"):
        assert layouts.shown == "packed"


def test_a_step_that_fails_has_ended() -> None:
    layouts = Layouts([placed(1)])
    with pytest.raises(KeyError), layouts.computing("file"):
        raise KeyError
    with layouts.computing("packed"):
        assert layouts.shown == "packed"


def test_moves_are_at_once_where_nothing_is_computed() -> None:
    tensor = placed(1, stored=False)
    layouts = Layouts([tensor])
    assert layouts.move([(tensor, Range(7, 100))]).is_set()
    assert record(tensor).data == 7
    assert tensor.packing is not None
    assert tensor.packing.stored == Range(7, 100)


def test_moves_wait_for_the_last_of_the_running_steps() -> None:
    tensor = placed(1, stored=False)
    layouts = Layouts([tensor])
    with layouts.computing("packed"):
        with layouts.computing("packed"):
            done = layouts.move([(tensor, Range(7, 100))])
        assert not done.is_set()
        assert record(tensor).words == []
    assert done.is_set()
    assert record(tensor).data == 7


def test_what_moves_while_the_file_is_shown_is_seen_later() -> None:
    tensor = placed(1)
    layouts = Layouts([tensor])
    with layouts.computing("file"):
        pass
    assert layouts.move([(tensor, Range(7, 100))]).is_set()
    assert record(tensor).data == 1000
    with layouts.computing("packed"):
        assert record(tensor).data == 7


def test_tensors_move_while_others_compute() -> None:
    tensors = [placed(number, stored=False) for number in range(8)]
    layouts = Layouts(tensors)
    broken: list[int] = []
    ends = threading.Event()

    def compute() -> None:
        wanted: itertools.cycle[Layout] = itertools.cycle(("packed", "file", "file"))
        while not ends.is_set():
            with layouts.computing(next(wanted)):
                before = [list(record(tensor).words) for tensor in tensors]
                if before != [list(record(tensor).words) for tensor in tensors]:
                    broken.append(1)

    thread = threading.Thread(target=compute)
    thread.start()
    for address in range(7, 57):
        moves = [(tensor, Range(address, 100)) for tensor in tensors]
        assert layouts.move(moves).wait(SECONDS)
    ends.set()
    thread.join(SECONDS)
    assert broken == []
    with layouts.computing("packed"):
        assert {record(tensor).data for tensor in tensors} == {56}
