"""Memory limits of Linux control groups, version 1 and 2: pure parsers, and one reader of the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 has no word for "no limit": it gives the largest number of pages.
UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Files:
    """What the files of one version are called."""

    limit: str
    usage: str
    cache_keys: tuple[str, ...]


VERSION_1 = Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
VERSION_2 = Files("memory.max", "memory.current", ("active_file", "inactive_file"))


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """One group that has a limit."""

    limit_bytes: int
    usage_bytes: int
    cache_bytes: int
    """Pages of files, which the kernel takes back before it refuses memory."""

    @property
    def available_bytes(self) -> int:
        """What can still be had without reaching the limit."""
        return max(0, self.limit_bytes - max(0, self.usage_bytes - self.cache_bytes))


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a hierarchy with memory limits is to be found."""

    root: str
    """The group that the mount point shows."""
    point: str
    files: Files


def parse_membership(text: str) -> dict[str, str]:
    """Controller to group, from ``/proc/self/cgroup``; the key is ``""`` for version 2."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2) if line.count(":") >= 2 else ("", "?", "")
        groups.update(dict.fromkeys(controllers.split(","), group))
    groups.pop("?", None)
    return groups


def parse_mounts(text: str) -> list[Mount]:
    """The hierarchies that can limit memory, from ``/proc/self/mountinfo``."""
    mounts = []
    for line in text.splitlines():
        place, _, kind = line.partition(" - ")
        fields, types = place.split(), kind.split()
        if len(fields) < 5 or not types:
            continue
        if types[0] == "cgroup2":
            mounts.append(Mount(_unescaped(fields[3]), _unescaped(fields[4]), VERSION_2))
        elif types[0] == "cgroup" and "memory" in types[-1].split(","):
            mounts.append(Mount(_unescaped(fields[3]), _unescaped(fields[4]), VERSION_1))
    return mounts


def parse_limit(text: str) -> int | None:
    """A limit in bytes; None for no limit, or for what is no number."""
    text = text.strip()
    if not text.isdecimal() or int(text) >= UNLIMITED_BYTES:
        return None
    return int(text)


def parse_cache(text: str, keys: tuple[str, ...]) -> int:
    """The sum of some lines of ``memory.stat``."""
    lines = (line.split() for line in text.splitlines())
    return sum(int(line[1]) for line in lines if len(line) == 2 and line[0] in keys and line[1].isdecimal())


def group_below(mount: Mount, group: str) -> str:
    """The group's path below the mount point: ``""`` if the mount does not show it."""
    if mount.root == "/":
        return "" if ".." in group.split("/") else group.strip("/")
    if group == mount.root or group.startswith(mount.root + "/"):
        return group[len(mount.root) :].strip("/")
    return ""


def limited_groups(root: Path = Path("/")) -> list[GroupMemory]:
    """This process's groups, and those around them, that have a limit; ``root`` is where the files are."""
    groups = parse_membership(_text(root / "proc/self/cgroup"))
    found = []
    for mount in parse_mounts(_text(root / "proc/self/mountinfo")):
        group = groups.get("" if mount.files is VERSION_2 else "memory")
        if group is not None:
            folders = _folders(root / mount.point.lstrip("/"), group_below(mount, group))
            found += [limited for folder in folders if (limited := _group(folder, mount.files))]
    return found


def _folders(point: Path, below: str) -> Iterator[Path]:
    yield point
    for part in below.split("/") if below else ():
        point = point / part
        yield point


def _group(folder: Path, files: Files) -> GroupMemory | None:
    limit = parse_limit(_text(folder / files.limit))
    usage = parse_limit(_text(folder / files.usage))
    if limit is None or usage is None:
        return None
    return GroupMemory(limit, usage, parse_cache(_text(folder / "memory.stat"), files.cache_keys))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unescaped(field: str) -> str:
    # mountinfo writes space, tab, newline and backslash as three octal digits.
    for code in (" ", "\t", "\n", "\\"):
        field = field.replace(f"\\{ord(code):03o}", code)
    return field
