"""Tiny LoRA adapters of PEFT, the same bytes on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from support.script_models import DTYPES, exact_values

Arrays = dict[str, np.ndarray[Any, Any]]


def low_rank(
    shapes: Mapping[str, tuple[int, int]], rank: int = 4, dtype: str = "float32", seed: int = 0
) -> Arrays:
    """Return lora_A and lora_B for modules of the given shapes [out, in]."""
    arrays: Arrays = {}
    for number, (module, (rows, columns)) in enumerate(shapes.items()):
        stem = f"base_model.model.{module}"
        first = exact_values((rank, columns), 2 * number + 100 * seed, 0.5)
        second = exact_values((rows, rank), 2 * number + 100 * seed + 1, 0.5)
        arrays[f"{stem}.lora_A.weight"] = first.astype(DTYPES[dtype])
        arrays[f"{stem}.lora_B.weight"] = second.astype(DTYPES[dtype])
    return arrays


def projections(layers: int, names: Mapping[str, tuple[int, int]], stem: str = "") -> Any:
    """Return the shapes of the named modules of every layer."""
    stem = stem or "model.layers.{}."
    return {stem.format(i) + name: shape for i in range(layers) for name, shape in names.items()}


ATTENTION = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
}
FEED_FORWARD = {
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


def write_adapter_folder(
    folder: Path, arrays: Mapping[str, Any], base: str = "", rank: int = 4, **settings: Any
) -> Path:
    """Write an adapter; return its folder."""
    folder.mkdir(parents=True)
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in arrays if ".lora_" in name}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8,
        "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted(modules), "lora_dropout": 0.0, "inference_mode": True, **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(arrays), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
