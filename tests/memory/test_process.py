from __future__ import annotations

from shardload.memory.process import ProcessMemory, parse_status

STATUS = """\
Name:\tpython
Pid:\t42
VmPeak:\t   90000 kB
VmRSS:\t   60000 kB
RssAnon:\t   40000 kB
RssFile:\t   19000 kB
RssShmem:\t    1000 kB
VmSwap:\t     500 kB
Threads:\t3
"""


def test_status() -> None:
    assert parse_status(STATUS) == ProcessMemory(
        resident_bytes=60_000 * 1024,
        anonymous_bytes=40_000 * 1024,
        file_bytes=19_000 * 1024,
        shared_bytes=1000 * 1024,
        swapped_bytes=500 * 1024,
    )


def test_status_of_a_kernel_that_does_not_tell_them_apart() -> None:
    assert parse_status("VmRSS:\t 8 kB\n") == ProcessMemory(8192, 8192, 0, 0, 0)
    assert parse_status("") == ProcessMemory(0, 0, 0, 0, 0)
