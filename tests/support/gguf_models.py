"""Small models and files for GGUF tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.gguf.metadata_value import pack_pair, pack_string, typed
from halfbyte.converters.gguf.profile import GgufProfile
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.tensor import ArrayPart, Tensor
from halfbyte.quant.plan import apply_plan, make_plan


def dense(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    """Return a dense tensor over an array."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    encoding = encoding_from_name(str(values.dtype))
    return Tensor(name, values.shape, encoding, {"data": ArrayPart(rows)})


def fitted(model: Model, type_name: str = "") -> Model:
    """Return the model as the plan for a GGUF file of this type has it."""
    plan = make_plan(model, GgufProfile(), type_name, requantize=True)
    return apply_plan(model, plan)


def random_model(model_type: str, seed: int = 0, **settings: Any) -> Model:
    """Return a tiny model with random float32 weights under Hugging Face names."""
    architecture = get_architecture(model_type)
    raw = {**architecture.EXAMPLE, **settings}
    config = architecture.canonical_config(raw)
    random = np.random.default_rng(seed)
    weights = {}
    for spec in architecture.weight_specs(config):
        if spec.optional:
            continue
        values = random.standard_normal(spec.shape).astype(np.float32) * 0.05
        if spec.key.role.is_norm and spec.key.kind == "weight":
            values += 1
        weights[spec.name] = dense(spec.name, values).identified(spec.key)
    return Model(weights, config, provenance=Provenance("hf", "tiny"), build=architecture.build)


def gguf_bytes(
    pairs: Mapping[str, Any],
    tensors: list[tuple[str, tuple[int, ...], int, bytes]],
    *,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """Return a little-endian file; tensors are (name, ggml dims, type id, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(pack_pair(key, typed(value)) for key, value in pairs.items())
    offset, body = 0, b""
    for name, dims, kind, data in tensors:
        head += pack_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", kind, offset)
        body += data + bytes(-len(data) % alignment)
        offset = len(body)
    return head + bytes(-len(head) % alignment) + body if tensors else head
