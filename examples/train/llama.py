"""A Llama decoder in plain PyTorch, with the weight names and arithmetic of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """The model's shape, under the names of its config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    initializer_range: float = 0.02


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer without bias."""
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to `x`, whose halves hold the paired coordinates."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, config: Config) -> None:
        """Create the four projections."""
        super().__init__()
        self.head_dim = config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, queries)
        self.k_proj = linear(config.hidden_size, keys)
        self.v_proj = linear(config.hidden_size, keys)
        self.o_proj = linear(queries, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix the positions of `x`."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = rotate(k, cos, sin).repeat_interleave(self.group, dim=1)
        v = v.repeat_interleave(self.group, dim=1)
        mixed = functional.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: Config) -> None:
        """Create the three projections."""
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of `x`."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Layer(nn.Module):
    """One decoder layer; while training, dropout thins the channels of both branches."""

    def __init__(self, config: Config, dropout: float) -> None:
        """Create both branches."""
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = dropout

    def thin(self, branch: Tensor) -> Tensor:
        """Drop channels for a whole sequence at a time, which costs next to no random numbers."""
        if not self.training or not self.dropout:
            return branch
        channels = branch.new_ones(len(branch), 1, branch.shape[2])
        return branch * functional.dropout(channels, self.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add both branches to `x`."""
        x = x + self.thin(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.thin(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Embedding, layers and final norm; the embedding is the output matrix as well."""

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        """Create the layers and draw the initial weights."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                shrink = math.sqrt(2 * config.num_hidden_layers) if into_residual else 1.0
                nn.init.normal_(weight, std=config.initializer_range / shrink)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the token behind each of `ids`."""
        half = torch.arange(0, self.config.head_dim, 2) / self.config.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]), self.config.rope_theta**-half)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.norm(x), self.embed_tokens.weight)
