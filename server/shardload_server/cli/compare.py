"""``shardload inspect A B ...``: what several files share, and what all of them cost together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.assembly import store_of
from shardload.errors import CorruptGGUF, format_bytes
from shardload.gguf import GGUFFile
from shardload.shards.contents import Contents, compute
from shardload.shards.shard import shards_of
from shardload_server.cli import console
from shardload_server.cli.progress import Report, byte_bar
from shardload_server.cli.sharing import ModelContents, ShardShare, Sharing, compare

if TYPE_CHECKING:
    from rich.table import Table

    from shardload.config import StoreConfig

EXPERT = re.compile(r"(?P<block>.* expert) \d+")


def compare_files(paths: Sequence[Path], settings: StoreConfig, *, every_shard: bool, as_json: bool) -> None:
    """Print what files share; what is in them is remembered in the store. Raises GGUFError and OSError."""
    with ExitStack() as stack:
        files = [stack.enter_context(GGUFFile.open(path)) for path in paths]
        digests = _digests(files, _contents(settings))
        models = [
            ModelContents(_label(path, paths), str(path), shards_of(file.tensors.values()), found)
            for path, file, found in zip(paths, files, digests, strict=True)
        ]
    sharing = compare(models)
    if as_json:
        console.print_json(sharing)
        return
    out = console.stdout()
    out.print(_file_table(sharing))
    out.print()
    out.print(_shard_table(sharing.shards if every_shard else without_experts(sharing.shards), len(paths)))
    out.print()
    out.print(summary(sharing), style="bold")


def _contents(settings: StoreConfig) -> Contents | None:
    """What is remembered of files; None for no store."""
    store = store_of(settings)
    return store.contents if store is not None else None


def _digests(files: Sequence[GGUFFile], contents: Contents | None) -> list[Mapping[str, str]]:
    """The digests of each file's tensors; what nobody has looked at before is read through."""
    known = [contents.known(file) if contents else None for file in files]
    unknown = [file for file, found in zip(files, known, strict=True) if found is None]
    total = sum(tensor.nbytes for file in unknown for tensor in file.tensors.values())
    before = 0
    found: list[Mapping[str, str]] = []
    with byte_bar("reading") as report:
        for file, digests in zip(files, known, strict=True):
            if digests is None:
                progress = partial(_report_after, report, before, total)
                digests = contents.remember(file, progress) if contents else compute(file, progress)
                if digests is None:
                    raise CorruptGGUF(file.path, "it changed while it was read")
                before += sum(tensor.nbytes for tensor in file.tensors.values())
            found.append(digests)
    return found


def _report_after(report: Report, before: int, total: int, done: int, _: int) -> None:
    report(before + done, total)


def _label(path: Path, paths: Sequence[Path]) -> str:
    """The file's name, or its path where another has the same name."""
    twins = sum(1 for other in paths if other.name == path.name)
    return path.name if twins == 1 else str(path)


def _file_table(sharing: Sharing) -> Table:
    made = console.table(
        "file", "tensors", "shared", "its own", "", numbers=("tensors", "shared", "its own", "")
    )
    for file in sharing.files:
        made.add_row(
            file.name,
            format_bytes(file.bytes),
            format_bytes(file.shared_bytes),
            format_bytes(file.own_bytes),
            f"{console.percent(file.shared_bytes / max(file.bytes, 1))} shared",
        )
    return made


def _shard_table(shards: Iterable[ShardShare], files: int) -> Table:
    columns = ("shard", "in files", "apart", "together", "shared")
    made = console.table(*columns, numbers=columns[1:])
    for shard in shards:
        made.add_row(
            shard.name,
            f"{shard.files} of {files}",
            format_bytes(shard.bytes),
            format_bytes(shard.kept_bytes),
            console.percent(shard.shared_bytes / max(shard.bytes, 1)),
        )
    return made


def without_experts(shards: Iterable[ShardShare]) -> list[ShardShare]:
    """One line for all experts of a block; there can be thousands."""
    lines: dict[str, list[ShardShare]] = {}
    for shard in shards:
        match = EXPERT.fullmatch(shard.name)
        lines.setdefault(f"{match['block']}s" if match else shard.name, []).append(shard)
    return [
        ShardShare(
            name,
            max(shard.files for shard in members),
            sum(shard.bytes for shard in members),
            sum(shard.kept_bytes for shard in members),
            sum(shard.shared_bytes for shard in members),
        )
        for name, members in lines.items()
    ]


def summary(sharing: Sharing) -> str:
    """What all files take in memory, or in the store, when what is the same is there once."""
    apart, together = sharing.apart_bytes, sharing.together_bytes
    largest = max(file.bytes for file in sharing.files)
    times = together / max(largest, 1)
    models = console.count(len(sharing.files), "model")
    return (
        f"{models} of {format_bytes(apart)} take {format_bytes(together)} together: "
        f"{times:.2f} times the largest"
    )
