"""A model file mapped read-only: nothing is read until somebody looks."""

from __future__ import annotations

import io
import mmap
import os
import stat

from shardload.errors import CorruptGGUF, HandleClosed, NoSuchFile, NotGGUF, UnreadableFile


class FileMapping:
    """A read-only mapping of a whole file and, until `finish_header`, a raw stream of it.

    Owns the descriptor and the mapping. Views that were handed out stay valid after `close()`: the pages
    are unmapped when the last of them is gone. A file that is replaced or deleted stays as it was for us;
    one that is cut short in place is not survivable (the system ends a process that touches what is gone).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._mapping: mmap.mmap | None = None
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise NotGGUF(path, f"is {kind}: name a .gguf file")
            if status.st_size == 0:
                raise NotGGUF(path, "is empty")
            self.status, self.size_bytes = status, status.st_size
            self._mapping = _map(descriptor, path, status.st_size)
        except BaseException:
            os.close(descriptor)
            raise
        self.stream = io.FileIO(descriptor, closefd=True)
        _expect_random_reads(descriptor, True)

    def finish_header(self) -> None:
        """Close the stream; the mapping stays."""
        if not self.stream.closed:
            _expect_random_reads(self.stream.fileno(), False)
            self.stream.close()

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only view of ``length`` bytes; raises HandleClosed after `close()`."""
        if self._mapping is None:
            raise HandleClosed(self.path)
        return memoryview(self._mapping)[offset : offset + length]

    def close(self) -> None:
        """Give the file back; idempotent."""
        self.finish_header()
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:
                # Arrays still look at it: the last one unmaps it when it goes.
                del mapping


def _open(path: str) -> int:
    # Without O_NONBLOCK the open of a pipe would wait for a writer.
    flags = (
        os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        raise NoSuchFile(path) from error
    except IsADirectoryError as error:
        raise NotGGUF(path, "is a directory: name a .gguf file") from error
    except PermissionError as error:
        if os.path.isdir(path):  # how Windows says it
            raise NotGGUF(path, "is a directory: name a .gguf file") from error
        raise UnreadableFile(path) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotGGUF(path, f"cannot be opened: {reason}") from error


def _map(descriptor: int, path: str, size_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise CorruptGGUF(path, f"cannot be mapped: {error}") from error


def _expect_random_reads(descriptor: int, random: bool) -> None:
    # The kernel's readahead would bring in megabytes behind a header that ends somewhere before them.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM if random else os.POSIX_FADV_NORMAL)
