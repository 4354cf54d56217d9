"""How compressed-tensors rounds values between layers, carried from one checkpoint to the next.

What is carried is JSON, so that every container with metadata keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import StoredArray
from halfbyte.converters.hugging_face.checkpoints.ct_config import Groups
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.tensor import ArrayPart, Tensor

INPUT_SCALE = ".input_scale"
INPUTS = (INPUT_SCALE, ".input_zero_point", ".input_global_scale")
CACHES = (".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point", ".output_scale")
LARGEST = 4096  # values of an array that is carried; scales by token are not stored at all


def dynamic_inputs(kind: str) -> dict[str, Any]:
    """Return the scheme of inputs rounded to 8 bits by token while a model runs.

    kind: `int` or `float`, as the codes of the weights.
    """
    return {
        "num_bits": 8,
        "type": kind,
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "block_structure": None,
        "dynamic": True,
        "actorder": None,
        "observer": None,
        "observer_kwargs": {},
    }


def static_inputs(kind: str, observer: str = "minmax") -> dict[str, Any]:
    """Return the scheme of inputs rounded to 8 bits by one stored scale for each layer.

    observer: `minmax` or `mse`, how the scale was found.
    """
    fixed = {"strategy": "tensor", "dynamic": False, "observer": observer}
    return dynamic_inputs(kind) | fixed


def with_dynamic_inputs(carried: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return what is carried with inputs rounded by token; stored scales of inputs are dropped."""
    return _with_inputs(carried, dynamic_inputs(kind), {})


def with_static_inputs(
    carried: Mapping[str, Any], kind: str, scales: Mapping[str, float], observer: str = "minmax"
) -> dict[str, Any]:
    """Return what is carried with a stored scale for the inputs of each module of `scales`."""
    stored = {
        f"{module}{INPUT_SCALE}": {"dtype": "float32", "shape": [1], "values": [scale]}
        for module, scale in scales.items()
    }
    return _with_inputs(carried, static_inputs(kind, observer), stored)


def _with_inputs(
    carried: Mapping[str, Any], scheme: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    kept = {n: said for n, said in carried.get("scales", {}).items() if not n.endswith(INPUTS)}
    rest = {key: value for key, value in carried.items() if key != "scales"}
    scales = {**kept, **stored}
    return {**rest, "input_activations": dict(scheme)} | ({"scales": scales} if scales else {})


def stored_input_scales(carried: Mapping[str, Any]) -> dict[str, float]:
    """Return the scales of inputs by module; those of more than one value are left out."""
    found = {}
    for name, said in carried.get("scales", {}).items():
        if name.endswith(INPUT_SCALE) and len(said["values"]) == 1:
            found[name.removesuffix(INPUT_SCALE)] = float(said["values"][0])
    return found


def carried_activations(
    tensors: Mapping[str, Tensor],
    gone: Container[str],
    groups: Groups,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a checkpoint says of values between layers, {} for nothing.

    gone: names of arrays that belong to weights.
    """
    found: dict[str, Any] = {}
    inputs = groups.activations()
    if inputs:
        found["input_activations"] = dict(inputs[0])
    if settings.get("kv_cache_scheme"):
        found["kv_cache_scheme"] = settings["kv_cache_scheme"]
    scales = {
        name: _as_json(tensor)
        for name, tensor in tensors.items()
        if name.endswith(INPUTS + CACHES) and name not in gone and tensor.size <= LARGEST
    }
    return found | ({"scales": scales} if scales else {})


def _as_json(tensor: Tensor) -> dict[str, Any]:
    part = tensor.parts["data"]
    values = np.asarray(part.read()).astype(np.float64).reshape(-1).tolist()
    return {"dtype": part.dtype.name, "shape": list(tensor.shape), "values": values}


def stored_scales(
    carried: Mapping[str, Any], has_inputs: Callable[[str], bool]
) -> tuple[StoredArray, ...]:
    """Return the arrays that `carried_activations` took.

    has_inputs: whether inputs of a module are rounded; the scales of others are left out.
    """
    found = []
    for name, said in carried.get("scales", {}).items():
        if name.endswith(INPUTS) and not has_inputs(name.rpartition(".")[0]):
            continue
        values = np.array(said["values"], np.float64).astype(numpy_dtype(said["dtype"]))
        found.append(StoredArray(name, ArrayPart(values.reshape(tuple(said["shape"])))))
    return tuple(found)
