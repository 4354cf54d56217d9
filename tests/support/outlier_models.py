"""Models with a few channels that are far larger than the others."""

from __future__ import annotations

import numpy as np

from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import tensor_from_array

NORMED = {
    Role.ATTENTION_NORM: (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE),
    Role.FEED_FORWARD_NORM: (Role.FEED_FORWARD_GATE, Role.FEED_FORWARD_UP),
}


def with_outliers(model: Model) -> Model:
    """Return the same function with a few channels of 30 to 100 times their size after norms."""
    found = dict(model.weights)
    names = {(t.role, t.layer): t.name for t in found.values() if t.kind == "weight"}
    factors = np.ones(model.config["hidden_size"], np.float32)
    factors[[3, 17, 40]] = 30, 60, 100

    def scale(role: Role, layer: int, by: np.ndarray) -> None:
        tensor = found[names[role, layer]]
        values = (tensor.decode() * by).reshape(tensor.shape)
        found[tensor.name] = tensor_from_array(tensor.name, values).identified(tensor.key)

    for layer in range(model.config["num_hidden_layers"]):
        for norm, readers in NORMED.items():
            scale(norm, layer, factors)
            for reader in readers:
                scale(reader, layer, 1 / factors)
    return model.with_weights(found)
