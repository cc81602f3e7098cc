"""The demo network in PyTorch: what llama.cpp computes for the architecture qwen3moe.

Belief: pre-norm blocks; RMS norm on every head of queries and keys before a NeoX-style rotation;
grouped-query attention; a softmax router over all experts whose best `experts_used` weights are
scaled to sum to one; SiLU-gated experts. Source: llama.cpp `src/models/qwen3moe.cpp` and
`build_moe_ffn` in `src/llama-graph.cpp` as vendored by llama-cpp-python 0.3.36. Checked by
`training/check_export.py`, which compares logits.

Knows: shapes and arithmetic, and the share of tokens that each expert received.
Does not know: text, training, or files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of the network."""

    vocabulary_size: int
    layers: int = 6
    width: int = 192
    heads: int = 6
    kv_heads: int = 2
    head_width: int = 32
    experts: int = 16
    experts_used: int = 2
    expert_width: int = 96
    norm_epsilon: float = 1e-6
    rotation_base: float = 10_000.0
    context_tokens: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What the routers of all layers did with a batch.

    `expert_share` [layers, experts] is the share of all picks; `balance_loss` is 1 when both the
    picks and the probabilities are even.
    """

    expert_share: Tensor
    balance_loss: Tensor


class ChannelDropout(nn.Module):
    """Dropout that silences the same channels at all positions of one conversation.

    One random number serves a whole row; drawing one for each value took a tenth of a step.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def forward(self, hidden: Tensor) -> Tensor:
        """Silence channels while training, do nothing otherwise."""
        if not self.training or self.fraction == 0.0:
            return hidden
        kept = hidden.new_ones(hidden.shape[0], 1, hidden.shape[2])
        return hidden * functional.dropout(kept, self.fraction)


class Attention(nn.Module):
    """Grouped-query attention with normed heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.query = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_width, eps=shape.norm_epsilon)
        self.key_norm = nn.RMSNorm(shape.head_width, eps=shape.norm_epsilon)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Attend from each position to itself and to earlier ones."""
        batch, length, _ = hidden.shape
        heads = (batch, length, -1, self.shape.head_width)
        query = self.query_norm(self.query(hidden).view(heads)).transpose(1, 2)
        key = self.key_norm(self.key(hidden).view(heads)).transpose(1, 2)
        value = self.value(hidden).view(heads).transpose(1, 2)
        groups = self.shape.heads // self.shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, cosine, sine),
            _rotate(key, cosine, sine).repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            is_causal=True,
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, length, -1))


class Experts(nn.Module):
    """A router and its experts; each token visits only the experts that it was sent to."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.router = nn.Linear(shape.width, shape.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(shape.experts, shape.expert_width, shape.width))
        self.up = nn.Parameter(torch.empty(shape.experts, shape.expert_width, shape.width))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.width, shape.expert_width))

    def forward(self, hidden: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, each expert's share of picks, and the balance loss.

        `counted` marks the rows that are text and not padding; only they count for balance.
        """
        probabilities = functional.softmax(self.router(hidden), dim=-1)
        best, chosen = probabilities.topk(self.shape.experts_used, dim=-1)
        weights = best / best.sum(dim=-1, keepdim=True)
        # Sorting the picks by expert gives every expert one slice, so the cost is that of the
        # experts used and not of all.
        order = chosen.flatten().argsort()
        rows = order // self.shape.experts_used
        counts = torch.bincount(chosen.flatten(), minlength=self.shape.experts).tolist()
        outputs = [
            functional.linear(
                functional.silu(functional.linear(part, self.gate[expert]))
                * functional.linear(part, self.up[expert]),
                self.down[expert],
            )
            for expert, part in enumerate(hidden[rows].split(counts))
        ]
        weighted = torch.cat(outputs) * weights.flatten()[order].unsqueeze(-1)
        mixed = torch.zeros_like(hidden).index_add(0, rows, weighted)
        picks = torch.bincount(chosen[counted].flatten(), minlength=self.shape.experts)
        share = picks / picks.sum()
        balance = self.shape.experts * (share * probabilities[counted].mean(dim=0)).sum()
        return mixed, share, balance


class Block(nn.Module):
    """Attention and experts, each behind its norm and added to the stream."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.attention = Attention(shape)
        self.experts_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.experts = Experts(shape)
        self.dropout = ChannelDropout(dropout)

    def forward(
        self, hidden: Tensor, cosine: Tensor, sine: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stream after this block, the shares of picks and the balance loss."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), cosine, sine))
        rows = self.experts_norm(hidden).flatten(0, 1)
        mixed, share, balance = self.experts(rows, counted.flatten())
        return hidden + self.dropout(mixed.view_as(hidden)), share, balance


class DemoModel(nn.Module):
    """Embedding, blocks, norm and output."""

    def __init__(self, shape: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.width)
        self.embedding_dropout = ChannelDropout(dropout)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.output = nn.Linear(shape.width, shape.vocabulary_size, bias=False)
        self._initialize()

    def forward(self, tokens: Tensor, counted: Tensor) -> tuple[Tensor, Routing]:
        """Return the normed stream [batch, length, width] and the routing.

        Logits are left to the caller (`self.output`), who needs them at few positions.
        """
        hidden = self.embedding_dropout(self.embedding(tokens))
        cosine, sine = _rotation(self.shape, tokens.shape[1], hidden.device)
        shares, balances = [], []
        for block in self.blocks:
            hidden, share, balance = block(hidden, cosine, sine, counted)
            shares.append(share)
            balances.append(balance)
        routing = Routing(
            expert_share=torch.stack(shares).detach(), balance_loss=torch.stack(balances).mean()
        )
        return self.norm(hidden), routing

    def _initialize(self) -> None:
        """Draw small weights; what writes to the stream is scaled down with the depth."""
        into_stream = ("attention.output.weight", "experts.down")
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            fan_in = parameter.shape[-1]
            deviation = 0.02 if "embedding" in name else fan_in**-0.5 * 0.8
            if name.endswith(into_stream):
                deviation /= (2 * self.shape.layers) ** 0.5
            if "router" in name:
                deviation = 0.02
            nn.init.normal_(parameter, std=deviation)


def _rotation(shape: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    half = shape.head_width // 2
    steps = torch.arange(half, device=device, dtype=torch.float32)
    frequencies = shape.rotation_base ** (-steps / half)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first half of each head against the second (the NeoX pairing)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
