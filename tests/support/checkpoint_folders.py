"""Tiny decoders as quantized Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte import pipeline
from halfbyte.converters.hugging_face.checkpoint import read_weight_file
from halfbyte.ir.model import Model
from support.model_folders import tiny_model, write_model

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def decoder(model_type: str = "llama", **settings: Any) -> Model:
    """Return a random decoder whose rows divide into the groups that checkpoints use."""
    more: dict[str, Any] = {}
    if model_type.endswith("_moe"):
        more = {"moe_intermediate_size": 64, "num_experts": 3, "num_experts_per_tok": 2}
        more |= {"shared_expert_intermediate_size": 128} if model_type == "qwen2_moe" else {}
    return tiny_model(model_type, **{**SIZES, **more, **settings})


def quantized(
    folder: Path, to: str, type_name: str, model: Model | None = None, **more: Any
) -> Path:
    """Return a folder or file with a quantized decoder, written by the library."""
    source = folder / "float"
    if not source.exists():
        write_model(model or decoder(), source)
    endings = {"gguf": "model.gguf", "onnx:ort": "model.onnx", "hb": "model.hb"}
    target = folder / f"{to}-{type_name}".replace(":", "_")
    if to in endings:
        target.mkdir()
        target = target / endings[to]
    pipeline.quantize(source, target, to=to, type=type_name, **more)
    return target


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the stored arrays of a folder with one file, by name."""
    stored = read_weight_file(folder / "model.safetensors")
    return {n: np.array(t.parts["data"].read()).reshape(t.shape) for n, t in stored.items()}


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the quantization_config of a folder."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found
