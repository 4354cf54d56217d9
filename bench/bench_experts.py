"""Decode and prefill speed of a random mixture of experts beside llama-bench.

    python bench/bench_experts.py [--kinds mixtral qwen3_moe] [--types F32 Q8_0 Q4_0] [--threads 2]

Writes two mixtures of about 115 million weights: 8 experts of which a token meets 2, and 32 of
which it meets 8. Prints medians and ratios as bench_generation does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_generation import GenerationSpeed, measure, write_type

SHARED = {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8192,
    "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {**SHARED, "num_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **SHARED, "num_experts": 32, "num_experts_per_tok": 8, "moe_intermediate_size": 256,
        "norm_topk_prob": True,
    },
}  # fmt: skip


def write_mixture(kind: str, path: Path) -> None:
    """Write a random model in float32."""
    from halfbyte.converters import get_format
    from halfbyte.converters.architectures import get_architecture
    from halfbyte.converters.format import WriteOptions
    from halfbyte.ir.model import Model
    from halfbyte.ir.tensor import tensor_from_array

    architecture, generator = get_architecture(kind), np.random.default_rng(1)
    config = architecture.canonical_config({"model_type": kind, **KINDS[kind]})
    weights = {}
    for spec in architecture.weight_specs(config):
        if spec.name:
            values = generator.standard_normal(spec.shape, np.float32) / np.float32(16)
            weights[spec.name] = tensor_from_array(spec.name, values).identified(spec.key)
    model = Model(weights, config, build=architecture.build)
    get_format("gguf").write(model, path, WriteOptions())
    assert path.stat().st_size > 0


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--types", nargs="+", default=["F32", "Q8_0", "Q4_0"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            source = Path(folder) / f"{kind}.gguf"
            write_mixture(kind, source)
            print(kind)
            for name in options.types:
                path = write_type(source, Path(folder), name)
                speed = GenerationSpeed(path, options.threads, options.prefill, options.decode)
                measure(name, speed)


if __name__ == "__main__":
    main()
