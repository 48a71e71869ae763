from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.library.sharing import beside_bytes, groups, own_bytes, sharers, united_bytes

PLACES = st.dictionaries(
    st.sampled_from("abcd"), st.sets(st.integers(0, 9)).map(lambda found: {each: each + 1 for each in found})
)


def test_fine_tunes_share_most_of_their_bytes() -> None:
    common = {"common": 80}
    found = groups({"a": {**common, "a": 20}, "b": {**common, "b": 20}, "c": {"c": 100}})
    assert united_bytes(found, {"a"}) == united_bytes(found, {"c"}) == 100
    assert united_bytes(found, {"a", "b"}) == 120
    assert united_bytes(found, set()) == 0
    assert (sharers(found, "a"), sharers(found, "c")) == ({"b"}, set())
    assert own_bytes(found, ["b", "a", "c"]) == {"b": 100, "a": 20, "c": 100}
    assert own_bytes(found, ["a"]) == {"a": 100}


@given(PLACES)
def test_every_place_counts_once(places: dict[str, dict[int, int]]) -> None:
    found = groups(places)
    everything = {place: nbytes for own in places.values() for place, nbytes in own.items()}
    assert united_bytes(found, places.keys()) == sum(everything.values())
    order = sorted(places)
    own = own_bytes(found, order)
    assert sum(own.values()) == sum(everything.values())
    for index, user in enumerate(order):
        before = united_bytes(found, order[:index])
        assert own[user] == united_bytes(found, order[: index + 1]) - before
        beside = beside_bytes(found, order[:index], [user, "nobody"])
        assert beside == {user: own[user], "nobody": 0}
        assert united_bytes(found, [user]) == sum(places[user].values())
