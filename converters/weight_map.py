"""Names of Hugging Face checkpoints and what they mean; row orders and transposition.

Canonical form: a weight is [out, in] and query and key rows stand as they were read. Rows move
encoded: nothing quantized is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.architectures.config import WHERE
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import transposed


@dataclass(frozen=True)
class Identified:
    """Checkpoint names sorted by meaning: weights, known buffers, and names nobody knows."""

    keys: dict[str, WeightKey]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]


def identify(
    names: Iterable[str], architecture: Architecture, config: Mapping[str, Any]
) -> Identified:
    """Return what each checkpoint name means, whichever prefix it carries.

    Raises:
        FormatError: two names mean the same weight.
    """
    table = architecture.hugging_face_names(config)
    keys: dict[str, WeightKey] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    taken: dict[WeightKey, str] = {}
    for name in names:
        spelled = next((s for s in architecture.primary_names(name) if s in table), None)
        if spelled is None:
            (ignored if architecture.is_ignorable(name) else unknown).append(name)
            continue
        key = keys[name] = table[spelled]
        if key in taken:
            raise FormatError(
                WHERE, f"{taken[key]!r} and {name!r} both name {key}; keep one of the two"
            )
        taken[key] = name
    return Identified(keys, tuple(ignored), tuple(unknown))


def names_by_key(architecture: Architecture, config: Mapping[str, Any]) -> dict[WeightKey, str]:
    """Return the full Hugging Face name of every weight that the config allows."""
    return {key: name for name, key in architecture.hugging_face_names(config).items()}


def _transposed(tensor: Tensor) -> Tensor:
    if tensor.encoding.is_quantized or len(tensor.shape) != 2:
        raise UnsupportedError(
            f"transposing {tensor.name!r} ({tensor.encoding}, shape {list(tensor.shape)})",
            tensor.name, ("dense matrices",), "convert it to a dense type first",
        )  # fmt: skip
    return transposed(tensor)


def to_canonical(tensor: Tensor, architecture: Architecture) -> Tensor:
    """Return an identified weight as [out, in]; Hugging Face keeps some as [in, out].

    Raises:
        UnsupportedError: the weight would have to be transposed and is not a dense matrix.
    """
    needed = tensor.key is not None and architecture.transposed(tensor.key)
    return _transposed(tensor) if needed else tensor


def from_canonical(tensor: Tensor, architecture: Architecture) -> Tensor:
    """Return a canonical weight as Hugging Face stores it; the inverse of `to_canonical`."""
    return to_canonical(tensor, architecture)


def in_rotary_order(
    tensor: Tensor, architecture: Architecture, config: Mapping[str, Any], interleaved: bool
) -> Tensor:
    """Return a weight with query and key rows in the wanted rotary order, still encoded."""
    key = tensor.key
    order = None if key is None else architecture.row_order(key, config, interleaved)
    return tensor if order is None else tensor.take_rows(order)


def model_in_rotary_order(model: Model, architecture: Architecture, interleaved: bool) -> Model:
    """Return the model with all rows in the wanted rotary order and a config that says so."""
    if model.config.get("rope_interleaved", interleaved) == interleaved:
        return model
    weights = {
        name: in_rotary_order(tensor, architecture, model.config, interleaved)
        for name, tensor in model.weights.items()
    }
    config = {**model.config, "rope_interleaved": interleaved}
    return replace(model.with_weights(weights), config=config)
