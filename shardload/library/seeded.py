"""Whether seeded texts get a context of their own. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shardload.library.candidates import Rules, holdings
from shardload.library.entry import ModelEntry, Use
from shardload.library.holdings import Instance, ServedKey, served_key
from shardload.library.ledger import Ledger
from shardload.library.opener import Opener
from shardload.library.relief import reclaimable_bytes


def has_room_beside(
    ledger: Ledger, opener: Opener, entry: ModelEntry, budget_bytes: int, pinned: Iterable[Instance]
) -> bool:
    """Whether a seeded context can be there together with the ordinary one, now or when idle models left.

    Otherwise each would send the other away, and a text in the ordinary one is as good: it is only alone
    there while it is written.
    """
    key = served_key(entry)
    if _is_there(ledger, key, "seeded"):
        return True
    seeded = opener.predict(entry, "seeded")
    needed_bytes = seeded.context_bytes
    if not _is_there(ledger, key, "generate"):
        needed_bytes += opener.predict(entry, "generate").context_bytes
    weights = ledger.weights.get(key[0])
    if weights is None:
        needed_bytes += seeded.weights_bytes + seeded.vocabulary_bytes
    elif not weights.active:
        needed_bytes += ledger.used_bytes(weights, weights.limit_bytes) - ledger.used_bytes()
    others = [each for each in holdings(ledger, Rules(set(pinned))) if each.key is not weights]
    free_bytes = budget_bytes - ledger.used_bytes() + ledger.leaving_bytes()
    return needed_bytes <= free_bytes + reclaimable_bytes(others)


def _is_there(ledger: Ledger, key: ServedKey, use: Use) -> bool:
    instance = ledger.instances.get((key, use))
    return instance is not None and instance.state in ("opening", "open")
