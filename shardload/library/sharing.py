"""Which memory several weights use together. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

Groups = Mapping[frozenset[K], int]
"""Bytes by all those that use them."""


def groups(places: Mapping[K, Mapping[Hashable, int]]) -> Groups[K]:
    """Put the places of each together by who else uses them; a place is as large for one as for another."""
    users: dict[Hashable, tuple[K, ...]] = {}
    sizes: dict[Hashable, int] = {}
    for user, own in places.items():
        for place in own:
            users[place] = (*users.get(place, ()), user)
        sizes.update(own)
    # Users are in one order everywhere: the same ones make the same tuple.
    found: defaultdict[tuple[K, ...], int] = defaultdict(int)
    for place, together in users.items():
        found[together] += sizes[place]
    return {frozenset(together): nbytes for together, nbytes in found.items()}


def united_bytes(found: Groups[K], users: Collection[K]) -> int:
    """What some of the users take together, each place counted once."""
    return sum(nbytes for together, nbytes in found.items() if not together.isdisjoint(users))


def beside_bytes(found: Groups[K], users: Collection[K], others: Collection[K]) -> dict[K, int]:
    """What each of the others uses and none of the users does."""
    beside = dict.fromkeys(others, 0)
    for together, nbytes in found.items():
        if together.isdisjoint(users):
            for other in together & beside.keys():
                beside[other] += nbytes
    return beside


def sharers(found: Groups[K], user: K) -> set[K]:
    """Who uses some of the same places."""
    return {other for together in found if user in together for other in together if other is not user}


def own_bytes(found: Groups[K], order: Sequence[K]) -> dict[K, int]:
    """What each takes when the first in the order that uses a place has all of it."""
    rank = {user: index for index, user in enumerate(order)}
    own = dict.fromkeys(order, 0)
    for together, nbytes in found.items():
        if users := [user for user in together if user in rank]:
            own[min(users, key=rank.__getitem__)] += nbytes
    return own
