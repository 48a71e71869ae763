"""Pages: what is in memory, bringing it in, sending it away, and how much room there is."""

from shardload.memory.advise import (
    discard,
    drop_file_cache,
    expect_lookups,
    page_out,
    populate_read,
    same_bytes,
    view,
)
from shardload.memory.heap import trim_heap
from shardload.memory.limits import available_bytes, cgroup_limit_bytes, process_memory
from shardload.memory.mapped import MappedFile, mapped_files
from shardload.memory.pages import PAGE_BYTES, Range
from shardload.memory.residency import file_resident_bytes, resident_bytes, resident_pages

__all__ = [
    "PAGE_BYTES",
    "MappedFile",
    "Range",
    "available_bytes",
    "cgroup_limit_bytes",
    "discard",
    "drop_file_cache",
    "expect_lookups",
    "file_resident_bytes",
    "mapped_files",
    "page_out",
    "populate_read",
    "process_memory",
    "resident_bytes",
    "resident_pages",
    "same_bytes",
    "trim_heap",
    "view",
]
