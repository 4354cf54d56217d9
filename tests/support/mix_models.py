"""GGUF headers with tiny weights, for the choice of types: a model's shape without its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.names import key_of
from halfbyte.ir.model import Model
from support.gguf_models import TensorEntry, gguf_bytes

DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
FUSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
EXPERTS = (*DENSE[:4], "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class MixModel:
    """What the rules of mixes look at."""

    architecture: str = "llama"
    layers: int = 8
    heads: int = 8
    key_heads: int = 8
    experts: int = 0
    columns: int = 256
    tied: bool = False
    weights: tuple[str, ...] = DENSE

    def pairs(self) -> dict[str, Any]:
        """Return the metadata that llama.cpp wants of every architecture used here."""
        found = {
            "block_count": self.layers,
            "context_length": 64,
            "embedding_length": 256,
            "feed_forward_length": 256,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": 256 // self.heads,
            "vocab_size": 4,
        }
        if self.experts:
            found |= {"expert_count": self.experts, "expert_used_count": 2}
        named = {f"{self.architecture}.{key}": value for key, value in found.items()}
        return {"general.architecture": self.architecture, **named}

    def tensors(self) -> list[TensorEntry]:
        """Return weights of two rows, in the order of a converter."""
        heads = () if self.tied else ("output",)
        found = [self._entry(name) for name in ("token_embd", *heads)]
        found.append(("output_norm.weight", (self.columns,), 0, bytes(4 * self.columns)))
        for layer in range(self.layers):
            found += [self._entry(f"blk.{layer}.{name}") for name in self.weights]
        return found

    def _entry(self, stem: str) -> TensorEntry:
        dims: Sequence[int] = (self.columns, 2)
        if stem.endswith("_exps"):
            dims = (*dims, self.experts)
        return f"{stem}.weight", dims, 0, bytes(4 * math.prod(dims))

    def write(self, path: Path) -> Model:
        """Write the file; return it as a model without a graph, whatever it lacks to have one."""
        path.write_bytes(gguf_bytes(self.pairs(), self.tensors()))
        container = read_container(path)
        weights = {
            info.name: container.tensor(info).identified(key_of(info.name))
            for info in container.tensors
        }
        return Model(weights, metadata={"gguf": container.metadata})
