"""What a file is, told without reading it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from os import PathLike
from typing import Self

# Older kernels give changes the time of the last tick: one right after a look would not show.
TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Changes whenever a file's bytes may have changed.

    The time of the last change of the inode (``ctime_ns``) cannot be set by programs: it tells a file that
    was replaced or edited and then given its old size and time of modification.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: int | str | PathLike[str] | os.stat_result) -> Self:
        """The identity of a path, a descriptor or what `os.stat` said of either. Raises OSError."""
        status = file if isinstance(file, os.stat_result) else os.stat(file)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote; raises ValueError."""
        device, inode, size, mtime_ns, ctime_ns = map(int, text.split(":"))
        return cls(device, inode, size, mtime_ns, ctime_ns)

    def __str__(self) -> str:
        return f"{self.device}:{self.inode}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"

    @property
    def lasting(self) -> str:
        """The part that stays the same when the system starts again, where devices may be renumbered."""
        return f"{self.inode}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"

    @property
    def unsettled_seconds(self) -> float:
        """For how long the file's next change might not show yet; 0 from then on."""
        age = time.time() - self.ctime_ns / 1e9
        return TICK_SECONDS - age if 0 <= age < TICK_SECONDS else 0.0

    def same(self, other: FileIdentity) -> bool:
        """Whether both are of one unchanged file; the number of its device does not count."""
        return self.lasting == other.lasting
