"""Tiny models with random weights for every architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from halfbyte.converters.architectures import get_architecture
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor, tensor_from_array


def random_weights(
    model_type: str, config: Mapping[str, Any], seed: int = 0, skip: tuple[Role, ...] = ()
) -> dict[str, Tensor]:
    """Return float32 weights in canonical form for a canonical config, by Hugging Face name."""
    generator = np.random.default_rng(seed)
    weights: dict[str, Tensor] = {}
    for spec in get_architecture(model_type).weight_specs(config):
        if not spec.name or spec.key.role in skip:
            continue
        values = generator.standard_normal(spec.shape) * (0.3 if len(spec.shape) == 1 else 0.15)
        if spec.key.role.is_norm and spec.key.kind == "weight":
            values += 1
        tensor = tensor_from_array(spec.name, values.astype(np.float32))
        weights[spec.name] = tensor.identified(spec.key)
    return weights


def random_model(
    model_type: str, seed: int = 0, skip: tuple[Role, ...] = (), **overrides: Any
) -> Model:
    """Return a random model of an architecture's example config, changed by `overrides`.

    The output head is left out where the config ties it.
    """
    architecture = get_architecture(model_type)
    config = architecture.canonical_config({**architecture.EXAMPLE, **overrides})
    if config["tie_word_embeddings"]:
        skip = (*skip, Role.OUTPUT_HEAD)
    weights = random_weights(model_type, config, seed, skip)
    return Model(
        weights, config, provenance=Provenance("test", f"random {model_type}"),
        build=architecture.build,
    )  # fmt: skip
