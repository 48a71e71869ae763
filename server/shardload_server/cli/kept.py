"""What the store knows of a model file: which other files have the same bytes, and which are packed."""

from __future__ import annotations

from shardload.assembly import store_of
from shardload.config import StoreConfig
from shardload.gguf import GGUFFile
from shardload.shards.entry import Entry
from shardload_server.cli.inspection import KeptTensor
from shardload_server.cli.stored import model_name


def kept_tensors(file: GGUFFile, settings: StoreConfig) -> dict[str, KeptTensor]:
    """What is known of each tensor; nothing of a file that was neither packed nor compared yet."""
    store = store_of(settings)
    if store is None or not store.directory.exists():
        return {}
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
            files=tuple(model_name(path) for path in holders.get(digest, ()) if path not in own),
            packed_bytes=max((entry.nbytes for entry in packed.get(digest, ())), default=0),
            last_used=max((entry.last_used for entry in packed.get(digest, ())), default=None),
        )
        for name, digest in digests.items()
    }
