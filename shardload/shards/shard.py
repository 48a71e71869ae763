"""Which tensors come and go together, in the order in which a step computes with them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shardload.gguf import TensorInfo

BLOCK = re.compile(r"(?:(?P<stack>.*?)\.)?blk\.(?P<block>\d+)\.")
EXPERT_OF_OLD = re.compile(r"\.ffn_(?:gate|up|down)\.(?P<expert>\d+)\.")
EXPERTS_WORD = "_exps."
OUTPUT_WEIGHTS = "output.weight"
STACK_NAMES = {"enc": "encoder block", "dec": "decoder block"}
EMBEDDINGS, OUTPUT, OTHER = "embeddings", "output", "other"
EMBEDDING_NAMES = ("token_embd", "token_types", "position_embd", "per_layer_token_embd", "wte", "wpe")
OUTPUT_NAMES = ("output", "output_norm", "cls", "dense_2", "dense_3")

_FIRST, _BLOCKS, _LAST, _REST = range(4)
_Rank = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A whole tensor, or a slice of one: ``nbytes`` from ``offset`` on, in the file's order of bytes."""

    tensor: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of residency: a block, an expert of a block, the embeddings, the output."""

    name: str
    pieces: tuple[Piece, ...]
    nbytes: int


def shards_of(tensors: Iterable[TensorInfo]) -> tuple[Shard, ...]:
    """Group a model's tensors, in the order in which a step computes with them.

    Each byte is in one shard. Embeddings that are the output's weights too come last, since a step looks up
    a few of their rows at first and multiplies with all of them in the end.
    """
    known = list(tensors)
    tied = is_tied(tensor.name for tensor in known)
    groups: dict[tuple[_Rank, str], list[Piece]] = {}
    for tensor in known:
        for group, piece in _pieces(tensor, tied):
            groups.setdefault(group, []).append(piece)
    return tuple(
        Shard(name, tuple(pieces), sum(piece.nbytes for piece in pieces))
        for (_, name), pieces in sorted(groups.items())
    )


def is_tied(tensors: Iterable[str]) -> bool:
    """Whether a model's embeddings are the output's weights too, by the names of its tensors."""
    return OUTPUT_WEIGHTS not in tensors


def _pieces(tensor: TensorInfo, tied: bool) -> list[tuple[tuple[_Rank, str], Piece]]:
    rank, name = _place(tensor.name, tied)
    whole = Piece(tensor.name, 0, tensor.nbytes)
    experts = _expert_count(tensor)
    if rank[0] != _BLOCKS:
        return [((rank, name), whole)]
    if old := EXPERT_OF_OLD.search(tensor.name):
        return [(_expert(rank, name, int(old["expert"])), whole)]
    if not experts:
        return [((rank, name), whole)]
    length = tensor.nbytes // experts
    return [
        (_expert(rank, name, number), Piece(tensor.name, number * length, length))
        for number in range(experts)
    ]


def _expert_count(tensor: TensorInfo) -> int:
    """How many equal slices a tensor of experts has; 0 for any other, and for a number per expert."""
    if EXPERTS_WORD not in tensor.name or len(tensor.ne) < 2:
        return 0
    count = tensor.ne[-1]
    return count if count and tensor.nbytes % count == 0 else 0


def _expert(rank: _Rank, block: str, number: int) -> tuple[_Rank, str]:
    return (*rank[:3], number + 1), f"{block} expert {number}"


def _place(name: str, tied: bool) -> tuple[_Rank, str]:
    if block := BLOCK.match(name):
        stack, number = block["stack"] or "", int(block["block"])
        word = STACK_NAMES.get(stack, f"{stack} block") if stack else "block"
        # Encoders run before what reads them.
        order = 0 if stack == "enc" else 1
        return (_BLOCKS, order, number, 0), f"{word} {number}"
    first = name.partition(".")[0]
    if first in EMBEDDING_NAMES or first.startswith("token_embd"):
        return (_LAST if tied else _FIRST, 1, 0, 0), EMBEDDINGS
    if first in OUTPUT_NAMES or first.startswith("output") or name.endswith(".output_norm.weight"):
        return (_LAST, 0, 0, 0), OUTPUT
    return (_REST, 0, 0, 0), OTHER
