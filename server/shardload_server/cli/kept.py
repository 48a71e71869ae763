"""What the store knows of a model file: which other files have the same bytes, and which are packed."""

from __future__ import annotations

from pathlib import Path

from shardload.gguf import GGUFFile
from shardload.shards.entry import Entry
from shardload.shards.store import Store
from shardload_server.cli.inspection import KeptTensor
from shardload_server.cli.location import store_directory


def kept_tensors(file: GGUFFile, option: str | None) -> dict[str, KeptTensor]:
    """What is known of each tensor; nothing of a file that was neither packed nor compared yet."""
    directory = store_directory(option)
    if directory is None or not directory.exists():
        return {}
    store = Store(directory)
    digests = store.contents.known(file)
    if digests is None:
        return {}
    holders = store.contents.holders()
    packed: dict[str, list[Entry]] = {}
    for entry in store.entries():
        packed.setdefault(entry.key.digest, []).append(entry)
    own = {path.absolute() for path in file.paths}
    return {
        name: KeptTensor(
            files=tuple(_name(path) for path in holders.get(digest, ()) if path not in own),
            packed_bytes=max((entry.nbytes for entry in packed.get(digest, ())), default=0),
            last_used=max((entry.last_used for entry in packed.get(digest, ())), default=None),
        )
        for name, digest in digests.items()
    }


def _name(path: Path) -> str:
    return path.name.removesuffix(".gguf")
