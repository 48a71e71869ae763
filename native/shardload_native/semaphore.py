"""A POSIX semaphore that C code counts up: `sem_post` is a function pointer that needs no Python to run."""

from __future__ import annotations

from shardload_native import libc

# No C library's sem_t is larger than 32 bytes.
SEMAPHORE_WORDS = 16
LARGEST_VALUE = 2**31 - 1


class Semaphore:
    """One semaphore in memory of its own. Raises OSError, ENOSYS, where there is none without a name.

    ``address`` and ``post_address`` are for C: ``int post(void *address)`` counts one up and returns 0, or
    -1 without counting where `LARGEST_VALUE` is reached. Whoever gave them away keeps this object alive.
    """

    def __init__(self, value: int = 0) -> None:
        self._ffi, self._library = libc.calls()
        self._memory = self._ffi.new(f"uint64_t[{SEMAPHORE_WORDS}]")
        self._answer = self._ffi.new("int *")
        self.address = int(self._ffi.cast("uintptr_t", self._memory))
        self.post_address = int(self._ffi.cast("uintptr_t", self._library.sem_post))
        self._start(value)

    @property
    def value(self) -> int:
        """How far it has counted; on any thread, at any time."""
        self._library.sem_getvalue(self._memory, self._answer)
        return int(self._answer[0])

    def reset(self, value: int = 0) -> None:
        """Count from ``value`` on; not while anybody may be counting."""
        self._library.sem_destroy(self._memory)
        self._start(value)

    def _start(self, value: int) -> None:
        libc.check(self._library.sem_init(self._memory, 0, value), "sem_init")

    def post(self) -> None:
        """Count one up. Raises OSError where it cannot go higher."""
        libc.check(self._library.sem_post(self._memory), "sem_post")
