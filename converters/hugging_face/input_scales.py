"""Stored scales of what linear layers read: by the weights of a model, by the modules of a folder.

Experts are one weight here and a module each in folders; servers read a layer's experts with the
largest of their scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.hugging_face.checkpoints.ct_activations import (
    stored_input_scales,
    with_static_inputs,
)
from halfbyte.converters.hugging_face.checkpoints.schemes import WEIGHT
from halfbyte.converters.hugging_face.experts import stacks
from halfbyte.converters.hugging_face.folder_writer import output_name
from halfbyte.converters.weight_map import names_by_key
from halfbyte.ir.activation_scheme import ACTIVATIONS
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor


def modules_of_weights(model: Model) -> dict[str, tuple[str, ...]]:
    """Return the modules that a folder has for each weight, by the weight's name."""
    if model.architecture not in ARCHITECTURES:
        return {name: (_module(name),) for name in model.weights}
    architecture = get_architecture(model.architecture)
    names = names_by_key(architecture, model.config)
    stacked = stacks(architecture, model.config)

    def modules(tensor: Tensor) -> tuple[str, ...]:
        spec = None if tensor.key is None else stacked.get(tensor.key)
        if spec is None:
            return (_module(output_name(tensor, architecture, names, model)),)
        return tuple(_module(spec.expert_name.format(i)) for i in range(tensor.shape[0]))

    known = {None, *names, *stacked}
    return {name: modules(t) for name, t in model.weights.items() if t.key in known}


def _module(name: str) -> str:
    return name.removesuffix(WEIGHT)


def with_input_scales(
    model: Model, kind: str, scales: Mapping[str, float], observer: str = "minmax"
) -> Model:
    """Return the model that says how a server rounds its activations.

    kind: of the codes, `int` or `float`. scales: by the names of weights.
    """
    modules = modules_of_weights(model)
    stored = {
        module: scale
        for name, scale in scales.items()
        for module in modules.get(name, (_module(name),))
    }
    carried = model.metadata.get(ACTIVATIONS) or {}
    said = with_static_inputs(carried, kind, stored, observer)
    return replace(model, metadata={**model.metadata, ACTIVATIONS: said})


def input_scales_of(model: Model) -> dict[str, float]:
    """Return the scales that a model's container has stored, by the names of weights."""
    said: Any = model.metadata.get(ACTIVATIONS)
    found = stored_input_scales(said) if isinstance(said, dict) else {}
    if not found:
        return {}
    if model.architecture in ARCHITECTURES:
        architecture = get_architecture(model.architecture)
        spelled = [(s, scale) for n, scale in found.items() for s in architecture.primary_names(n)]
        found = {**dict(spelled), **found}
    scales = {}
    for name, modules in modules_of_weights(model).items():
        held = [found[module] for module in modules if module in found]
        if held:
            scales[name] = max(held)
    return scales
