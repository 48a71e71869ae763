from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.shards.shard import Piece, Shard
from shardload_server.cli.sharing import ModelContents, compare


def model(name: str, **shards: str) -> ModelContents:
    """A model whose shards are words: each letter is a tensor of 10 bytes with that content."""
    made, digests = [], {}
    for shard, letters in shards.items():
        pieces = []
        for index, letter in enumerate(letters):
            tensor = f"{shard}.{index}"
            digests[tensor] = letter
            pieces.append(Piece(tensor, 0, 10))
        made.append(Shard(shard, tuple(pieces), 10 * len(pieces)))
    return ModelContents(name, f"/models/{name}.gguf", tuple(made), digests)


def test_fine_tunes_that_leave_most_alone() -> None:
    base = model("base", embeddings="a", middle="bcd", output="e")
    tuned = model("tuned", embeddings="a", middle="bXd", output="e")
    found = compare([base, tuned])
    assert (found.apart_bytes, found.together_bytes) == (100, 60)
    assert [(file.name, file.bytes, file.shared_bytes, file.own_bytes) for file in found.files] == [
        ("base", 50, 40, 10),
        ("tuned", 50, 40, 10),
    ]
    assert [(shard.name, shard.files, shard.bytes, shard.kept_bytes) for shard in found.shards] == [
        ("embeddings", 2, 20, 10),
        ("middle", 2, 60, 40),
        ("output", 2, 20, 10),
    ]
    assert [shard.shared_bytes for shard in found.shards] == [20, 40, 20]


def test_the_same_weights_cost_nothing() -> None:
    found = compare([model(name, middle="abc") for name in "xyz"])
    assert (found.apart_bytes, found.together_bytes) == (90, 30)
    assert all(file.own_bytes == 0 for file in found.files)


def test_strangers_share_nothing() -> None:
    found = compare([model("one", middle="ab"), model("two", other="cd")])
    assert found.together_bytes == found.apart_bytes == 40
    assert [shard.files for shard in found.shards] == [1, 1]


def test_one_content_under_two_names_is_found() -> None:
    found = compare([model("one", embeddings="a"), model("two", output="a")])
    assert found.together_bytes == 10
    assert all(file.own_bytes == 0 for file in found.files)


def test_experts_are_parts_of_a_tensor() -> None:
    shards = tuple(Shard(f"expert {at}", (Piece("exps", 10 * at, 10),), 10) for at in range(2))
    both = [ModelContents(name, name, shards, {"exps": "same"}) for name in "ab"]
    found = compare(both)
    assert (found.apart_bytes, found.together_bytes) == (40, 20)
    changed = ModelContents("c", "c", shards, {"exps": "other"})
    assert compare([both[0], changed]).together_bytes == 40


letters = st.text("abcdef", max_size=6)


@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=5))
def test_sums_agree(words: list[tuple[str, str]]) -> None:
    models = [model(str(at), first=first, second=second) for at, (first, second) in enumerate(words)]
    found = compare(models)
    assert found.apart_bytes == sum(file.bytes for file in found.files)
    assert found.apart_bytes == sum(shard.bytes for shard in found.shards)
    assert found.together_bytes == 10 * len(set("".join(first + second for first, second in words)))
    assert all(file.shared_bytes + file.own_bytes == file.bytes for file in found.files)
    assert all(shard.kept_bytes <= shard.bytes for shard in found.shards)
