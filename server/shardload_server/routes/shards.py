"""The shards of a model: what of each is in memory, who else uses it, and when it was last of use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardload.gguf import GGUFFile
from shardload.library.entry import ModelEntry
from shardload.library.opener import ShardResidency
from shardload.memory import file_resident_bytes
from shardload.shards.shard import shards_of
from shardload_server.responses import json_response
from shardload_server.stack import Stack

if TYPE_CHECKING:
    from shardload.library.status import ModelStatus


async def list_shards(request: Request) -> Response:
    """``GET /models/{id}/shards``: measured now; of a model that is closed, its file is looked at."""
    stack: Stack = request.app.state.stack
    await stack.find(request.path_params["id"])
    await stack.manager.measure()
    # Again: names may come and go while it is measured.
    entry = stack.catalog.get(request.path_params["id"])
    statuses = {status.name: status for status in stack.manager.status()}
    status = statuses[entry.name]
    shards = status.shards or await anyio.to_thread.run_sync(file_shards, entry)
    return json_response(
        {
            "object": "list",
            "name": entry.name,
            "state": status.state,
            "warm_share": status.warm_share,
            "resident_bytes": status.resident_bytes,
            "second_layout_bytes": status.second_bytes,
            "shards": shard_bodies(status, shards, statuses, time.monotonic()),
        }
    )


def shard_bodies(
    status: ModelStatus, shards: Sequence[ShardResidency], statuses: Mapping[str, ModelStatus], now: float
) -> list[dict[str, Any]]:
    """Each shard in the order of computation; ``now`` is on the manager's clock.

    A step uses all of a model's shards, or in a mixture those of the experts that it chose: what is told is
    the last use of any model that has the shard.
    """
    return [
        {
            "name": shard.name,
            "bytes": shard.nbytes,
            "resident_bytes": shard.resident_bytes,
            "second_layout_bytes": shard.second_bytes,
            "shared_with": shard.shared_with,
            "idle_seconds": _idle_seconds(
                [status, *(statuses[name] for name in shard.shared_with if name in statuses)], now
            ),
        }
        for shard in shards
    ]


def _idle_seconds(users: Sequence[ModelStatus], now: float) -> float | None:
    """Since the last use; 0 while one of the users is in use, None where none ever was."""
    if any(user.leases for user in users):
        return 0.0
    used = [user.last_used for user in users if user.last_used is not None]
    return round(max(now - max(used), 0.0), 3) if used else None


def file_shards(entry: ModelEntry) -> tuple[ShardResidency, ...]:
    """The shards of a file that nothing has open, and what of them the system holds; reads the header.

    Raises a GGUFError or OSError for a file that is no longer what it was.
    """
    with GGUFFile(entry.path) as gguf:
        tensors = gguf.tensors
        made = []
        for shard in shards_of(tensors.values()):
            resident = 0
            for piece in shard.pieces:
                tensor = tensors[piece.tensor]
                path, offset = gguf.paths[tensor.part], tensor.offset + piece.offset
                resident += file_resident_bytes(path, offset, piece.nbytes) or 0
            made.append(ShardResidency(shard.name, shard.nbytes, resident, 0))
    return tuple(made)


ROUTES = (Route("/models/{id:path}/shards", list_shards),)
