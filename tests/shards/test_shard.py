from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.gguf import TensorInfo
from shardload.gguf.constants import TENSOR_TYPES
from shardload.shards.shard import Piece, shards_of

F16 = TENSOR_TYPES[1]


def tensor(name: str, *ne: int) -> TensorInfo:
    elements = 1
    for one in ne:
        elements *= one
    return TensorInfo(name, F16, ne, 0, 2 * elements)


def names(*tensors: str) -> list[str]:
    return [shard.name for shard in shards_of(tensor(name, 4) for name in tensors)]


def test_shards_are_in_the_order_of_computation() -> None:
    assert names(
        "output.weight",
        "output_norm.weight",
        "rope_freqs.weight",
        "blk.10.attn_q.weight",
        "blk.2.attn_q.weight",
        "token_embd.weight",
        "blk.2.ffn_down.weight",
    ) == ["embeddings", "block 2", "block 10", "output", "other"]


def test_embeddings_that_are_the_output_too_come_last() -> None:
    assert names("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight") == [
        "block 0",
        "output",
        "embeddings",
    ]


def test_encoders_come_before_decoders() -> None:
    assert names("dec.blk.0.attn_q.weight", "enc.blk.1.attn_q.weight", "v.blk.0.attn_q.weight") == [
        "encoder block 1",
        "decoder block 0",
        "v block 0",
    ]


def test_all_embeddings_are_together() -> None:
    found = shards_of(
        tensor(name, 4)
        for name in ("token_embd.weight", "token_embd_norm.bias", "position_embd.weight", "output.weight")
    )
    assert [(shard.name, len(shard.pieces)) for shard in found] == [("embeddings", 3), ("output", 1)]


def test_experts_are_slices_beside_their_block() -> None:
    found = shards_of(
        [
            tensor("blk.0.ffn_up_exps.weight", 8, 2, 3),
            tensor("blk.0.ffn_up_exps.bias", 2, 3),
            tensor("blk.0.ffn_up_exps.scale", 3),
            tensor("blk.0.ffn_gate_inp.weight", 8, 3),
            tensor("blk.0.ffn_up_shexp.weight", 8, 2),
            tensor("blk.1.attn_q.weight", 8),
        ]
    )
    assert [shard.name for shard in found] == [
        "block 0",
        "block 0 expert 0",
        "block 0 expert 1",
        "block 0 expert 2",
        "block 1",
    ]
    assert [piece.tensor for piece in found[0].pieces] == [
        "blk.0.ffn_up_exps.scale",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_up_shexp.weight",
    ]
    assert found[2].pieces == (
        Piece("blk.0.ffn_up_exps.weight", 32, 32),
        Piece("blk.0.ffn_up_exps.bias", 4, 4),
    )
    assert found[2].nbytes == 36


def test_experts_with_a_tensor_each() -> None:
    assert names("blk.3.ffn_gate.0.weight", "blk.3.ffn_gate.12.weight", "blk.3.ffn_gate.2.weight") == [
        "block 3 expert 0",
        "block 3 expert 2",
        "block 3 expert 12",
    ]


def test_no_tensors_no_shards() -> None:
    assert shards_of([]) == ()


WORDS = st.sampled_from(
    ["token_embd.weight", "output.weight", "blk.0.a.weight", "blk.1.ffn_up_exps.weight", "x", "", "blk.", "é"]
)


@given(st.dictionaries(st.one_of(WORDS, st.text(max_size=12)), st.lists(st.integers(1, 9), max_size=4)))
def test_every_byte_is_in_one_shard(tensors: dict[str, list[int]]) -> None:
    found = shards_of(tensor(name, *ne) for name, ne in tensors.items())
    pieces: dict[str, list[Piece]] = {name: [] for name in tensors}
    for shard in found:
        assert shard.nbytes == sum(piece.nbytes for piece in shard.pieces)
        for piece in shard.pieces:
            pieces[piece.tensor].append(piece)
    for name, ne in tensors.items():
        end = 0
        for piece in sorted(pieces[name], key=lambda piece: piece.offset):
            assert piece.offset == end
            end += piece.nbytes
        assert end == tensor(name, *ne).nbytes
    assert len({shard.name for shard in found}) == len(found)


@pytest.mark.parametrize("experts", [1, 2, 128])
def test_as_many_experts_as_the_last_dimension_has(experts: int) -> None:
    found = shards_of([tensor("blk.0.ffn_down_exps.weight", 4, 4, experts)])
    assert len(found) == experts
