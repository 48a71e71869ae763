"""The two networks, computed as llama.cpp computes them, and the optimizer that trains them.

Weight names are those of a GGUF file, so that a trained network is written as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a network."""

    vocabulary: int
    width: int
    blocks: int
    heads: int
    heads_kv: int
    hidden: int
    context: int
    epsilon: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_width(self) -> int:
        """Numbers in one head."""
        return self.width // self.heads


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate neighbouring numbers of each head by the angle of their position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)


def _blocks(modules: nn.ModuleList) -> list[nn.ModuleDict]:
    """Return the blocks of a network as what they are."""
    return [block for block in modules if isinstance(block, nn.ModuleDict)]


class Storyteller(nn.Module):
    """A decoder of the `llama` architecture whose output weights are its embeddings."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, hidden, kv = shape.width, shape.hidden, shape.heads_kv * shape.head_width
        self.token_embd = nn.Embedding(shape.vocabulary, width)
        nn.init.normal_(self.token_embd.weight, std=0.05)
        self.blk = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn_norm": nn.RMSNorm(width, shape.epsilon),
                    "attn_q": nn.Linear(width, width, bias=False),
                    "attn_k": nn.Linear(width, kv, bias=False),
                    "attn_v": nn.Linear(width, kv, bias=False),
                    "attn_output": nn.Linear(width, width, bias=False),
                    "ffn_norm": nn.RMSNorm(width, shape.epsilon),
                    "ffn_gate": nn.Linear(width, hidden, bias=False),
                    "ffn_up": nn.Linear(width, hidden, bias=False),
                    "ffn_down": nn.Linear(hidden, width, bias=False),
                }
            )
            for _ in range(shape.blocks)
        )
        self.output_norm = nn.RMSNorm(width, shape.epsilon)
        frequencies = shape.rope_base ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        for block in _blocks(self.blk):
            for last in ("attn_output", "ffn_down"):
                nn.init.zeros_(block[last].get_parameter("weight"))
        self._look_back(frequencies)

    @torch.no_grad()
    def _look_back(self, frequencies: Tensor) -> None:
        """Let the first head begin as one that looks at the token before, which all copying builds on.

        Every embedding gets the same first number, and query and key read that number alone: then only the
        distance between two tokens counts, and it counts most in the fastest rotations.
        """
        width, block = self.shape.head_width, _blocks(self.blk)[0]
        self.token_embd.weight[:, 0] = 0.3
        query, key = (block[name].get_parameter("weight")[:width] for name in ("attn_q", "attn_k"))
        query.zero_()
        key.zero_()
        fastest = 6
        query[0 : 2 * fastest : 2, 0] = 1.2
        key[0 : 2 * fastest : 2, 0] = 1.2 * frequencies[:fastest].cos()
        key[1 : 2 * fastest : 2, 0] = 1.2 * frequencies[:fastest].sin()
        value = block["attn_v"].get_parameter("weight")[:width]
        nn.init.orthogonal_(value)
        value[:, 0] = 0
        seen = torch.empty(self.shape.width, width)
        nn.init.orthogonal_(seen, 0.05)
        block["attn_output"].get_parameter("weight")[:, :width] = seen

    def _attention(self, block: nn.ModuleDict, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        cosine, sine = self.cosine[:length], self.sine[:length]
        q, k, v = (
            block[name](x).view(count, length, -1, self.shape.head_width).transpose(1, 2)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        repeat = self.shape.heads // self.shape.heads_kv
        k, v = _rotated(k, cosine, sine).repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        mixed = functional.scaled_dot_product_attention(_rotated(q, cosine, sine), k, v, is_causal=True)
        result: Tensor = block["attn_output"](mixed.transpose(1, 2).reshape(count, length, -1))
        return result

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the states from which the next tokens are read, one for each token."""
        x = self.token_embd(tokens)
        for block in _blocks(self.blk):
            x = x + self._attention(block, block["attn_norm"](x))
            y = block["ffn_norm"](x)
            x = x + block["ffn_down"](functional.silu(block["ffn_gate"](y)) * block["ffn_up"](y))
        states: Tensor = self.output_norm(x)
        return states

    def loss(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Return the summed loss of the next tokens, each times its weight (an array like `tokens`)."""
        chosen = weights[:, 1:] > 0
        states = self(tokens[:, :-1])[chosen]
        losses = functional.cross_entropy(
            states @ self.token_embd.weight.T, tokens[:, 1:][chosen], reduction="none"
        )
        return (losses * weights[:, 1:][chosen]).sum()


class Reader(nn.Module):
    """An encoder of the `bert` architecture; a sentence is the mean of its tokens' states."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, hidden = shape.width, shape.hidden
        self.token_embd = nn.Embedding(shape.vocabulary, width)
        self.position_embd = nn.Embedding(shape.context, width)
        self.token_types = nn.Embedding(2, width)
        for table, deviation in (
            (self.token_embd, 0.1),
            (self.position_embd, 0.02),
            (self.token_types, 0.02),
        ):
            nn.init.normal_(table.weight, std=deviation)
        self.token_embd_norm = nn.LayerNorm(width, shape.epsilon)
        self.blk = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn_q": nn.Linear(width, width),
                    "attn_k": nn.Linear(width, width),
                    "attn_v": nn.Linear(width, width),
                    "attn_output": nn.Linear(width, width),
                    "attn_output_norm": nn.LayerNorm(width, shape.epsilon),
                    "ffn_up": nn.Linear(width, hidden),
                    "ffn_down": nn.Linear(hidden, width),
                    "layer_output_norm": nn.LayerNorm(width, shape.epsilon),
                }
            )
            for _ in range(shape.blocks)
        )

    def forward(self, tokens: Tensor, present: Tensor, first: Tensor) -> Tensor:
        """Return a unit vector for each row; `present` masks padding, `first` is where each row begins."""
        count, length = tokens.shape
        positions = first[:, None] + torch.arange(length)
        x = self.token_embd(tokens) + self.position_embd(positions) + self.token_types.weight[0]
        x = self.token_embd_norm(x)
        mask = present[:, None, None, :]
        for block in _blocks(self.blk):
            q, k, v = (
                block[name](x).view(count, length, self.shape.heads, -1).transpose(1, 2)
                for name in ("attn_q", "attn_k", "attn_v")
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mixed = mixed.transpose(1, 2).reshape(count, length, -1)
            x = block["attn_output_norm"](x + block["attn_output"](mixed))
            y = block["ffn_down"](functional.gelu(block["ffn_up"](x), approximate="tanh"))
            x = block["layer_output_norm"](x + y)
        weights = present[:, :, None].float()
        return functional.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


class Muon(torch.optim.Optimizer):
    """Momentum whose step on each matrix is made orthogonal: learns in fewer steps than Adam.

    Computed in float32 throughout: a bfloat16 product ends the process where AMX is advertised and traps.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the matrices by their gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                held = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                held.lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonal(matrix.grad.lerp(held, group["momentum"]))
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return nearly the nearest matrix whose singular values are all one, by five Newton-Schulz steps."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().add(1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
