"""Features of ai.onnx.ml: selection, thresholds and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_of, numpy_dtype
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
    same_as_first,
)

DOMAIN = "ai.onnx.ml"
TYPES = {"int64s": "int64", "strings": "string", "floats": "float32"}


def evaluate_extractor(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Select elements of the last dimension; a vector becomes a row."""
    data, indices = np.asarray(inputs[0]), np.asarray(inputs[1]).reshape(-1)
    return [np.take(data.reshape(1, -1) if data.ndim == 1 else data, indices, axis=-1)]


def infer_extractor(node: Node) -> list[ValueType]:
    """Infer: as many elements as indices."""
    shape, indices = required_input(node, 0).shape, required_input(node, 1).shape
    dtype = common_dtype(node, [0])
    if shape is None:
        return [ValueType(dtype, None)]
    fixed = indices is not None and all(isinstance(d, int) for d in indices)
    count = int(np.prod([d for d in indices or () if isinstance(d, int)])) if fixed else UNKNOWN
    return [ValueType(dtype, (*(shape[:-1] if len(shape) > 1 else (1,)), count))]


def evaluate_binarizer(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return 1 above the threshold and 0 elsewhere."""
    data = np.asarray(inputs[0])
    return [(data > attributes["threshold"]).astype(data.dtype)]


def named(attributes: Mapping[str, Any], stem: str) -> Array | None:
    """Return the array that one of the attributes `stem`_* holds, None without one."""
    tensor = attributes.get(f"{stem}_tensor")
    if tensor is not None:
        return np.asarray(tensor)
    for ending, dtype in TYPES.items():
        values = attributes.get(f"{stem}_{ending}")
        if values is not None:
            return np.asarray(list(values), numpy_dtype(dtype))
    return None


def fallback(attributes: Mapping[str, Any], values: Array) -> Any:
    """Return the label of what is no key, in the type of the labels."""
    tensor = attributes.get("default_tensor")
    if tensor is not None:
        return np.asarray(tensor).reshape(-1)[0]
    kind = {"O": "string", "f": "float"}.get(values.dtype.kind, "int64")
    return attributes[f"default_{kind}"]


def mapped(data: Array, keys: Array, values: Array, default: Any) -> Array:
    """Return the label of each element; NaN is a key like any other, the last of equals counts."""
    table = {_key(key): value for key, value in zip(keys.tolist(), values, strict=True)}
    labels = [table.get(_key(item), default) for item in data.reshape(-1).tolist()]
    return np.asarray(labels, values.dtype).reshape(data.shape)


def _key(item: Any) -> Any:
    return "nan" if isinstance(item, float) and item != item else (type(item), item)


def key_values(node_label: str, attributes: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return keys and labels, as many.

    Raises:
        GraphError: one is missing, or they differ in length.
    """
    keys, values = named(attributes, "keys"), named(attributes, "values")
    if keys is None or values is None or keys.size != values.size:
        raise GraphError(node_label, "keys_* and values_* must be there in pairs; give both")
    return keys.reshape(-1), values.reshape(-1)


def evaluate_encoder(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LabelEncoder."""
    keys, values = key_values("LabelEncoder", attributes)
    return [mapped(np.asarray(inputs[0]), keys, values, fallback(attributes, values))]


def infer_encoder(node: Node) -> list[ValueType]:
    """Infer: the dtype of the labels."""
    _, values = key_values(node.label, node.attributes)
    return [ValueType(dtype_of(values), required_input(node, 0).shape)]


def evaluate_class_encoder(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Turn class names into their numbers, or numbers into names."""
    data = np.asarray(inputs[0])
    names = np.asarray(attributes["classes_strings"] or [], object)
    numbers = np.arange(len(names), dtype=np.int64)
    keys, values = (names, numbers) if dtype_of(data) == "string" else (numbers, names)
    return [mapped(data, keys, values, fallback(attributes, values))]


def infer_class_encoder(node: Node) -> list[ValueType]:
    """Infer: numbers for names, names for numbers."""
    data = required_input(node, 0)
    to = {"string": "int64", "int64": "string"}.get(data.dtype or "")
    return [ValueType(to, data.shape)]


DEFAULTS = {
    "default_float": Attribute("float", -0.0),
    "default_int64": Attribute("int", -1),
    "default_string": Attribute("string", "_Unused"),
}
LISTS = {f"{stem}_{ending}": Attribute(ending) for stem in ("keys", "values") for ending in TYPES}
LISTS = {name: Attribute(a.kind.replace("int64s", "ints")) for name, a in LISTS.items()}
TENSORS = {f"{stem}_tensor": Attribute("tensor") for stem in ("keys", "values", "default")}
ENCODER = OpSpec(
    "LabelEncoder",
    (2, 4),
    ("X",),
    ("Y",),
    infer=infer_encoder,
    evaluate=evaluate_encoder,
    attributes=DEFAULTS | LISTS | TENSORS,
    domain=DOMAIN,
    cases=lambda: [
        Case(
            "numbers",
            [np.asarray([1, 2, 5], np.int64)],
            {"keys_int64s": [1, 2], "values_floats": [0.5, 1.5]},
        )
    ],
)
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "ArrayFeatureExtractor",
        (1,),
        ("X", "Y"),
        ("Z",),
        infer=infer_extractor,
        evaluate=evaluate_extractor,
        domain=DOMAIN,
        cases=lambda: [Case("columns", [normal(161, 3, 4), np.asarray([2, 0], np.int64)])],
    ),
    OpSpec(
        "Binarizer",
        (1,),
        ("X",),
        ("Y",),
        infer=same_as_first,
        evaluate=evaluate_binarizer,
        attributes={"threshold": Attribute("float", 0.0)},
        domain=DOMAIN,
        cases=lambda: [Case("plain", [normal(162, 3, 4)], {"threshold": 0.5})],
    ),
    replace(
        ENCODER,
        versions=(1,),
        infer=infer_class_encoder,
        evaluate=evaluate_class_encoder,
        attributes={
            "classes_strings": Attribute("strings"),
            "default_int64": Attribute("int", -1),
            "default_string": Attribute("string", "_Unused"),
        },
        cases=list,
    ),
    ENCODER,
)
