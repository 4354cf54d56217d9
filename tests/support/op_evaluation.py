"""Evaluate one operator in a version, its inferred types held to the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.spec import Context, ValueType
from halfbyte.ir.tensor import tensor_from_array


def node_of(
    key: str, inputs: Sequence[Any], attributes: dict[str, Any], outputs: int, version: int | None
) -> Node:
    """Return a node over arrays (known integers are constants) or values."""
    spec = op_spec(key, version)
    values: list[Value | None] = []
    for index, given in enumerate(inputs):
        if given is None or isinstance(given, Value):
            values.append(given)
            continue
        array = np.asarray(given)
        small = array.ndim < 2 and index > 0
        tensor = tensor_from_array(f"in{index}", array) if small else None
        values.append(Value(f"in{index}", dtype_of(array), array.shape, None, tensor, True))
    outs = [Value(f"out{i}") for i in range(outputs)]
    since = spec.versions[-1] if version is None else version
    return Node(spec.op, values, outs, attributes, spec.domain, since)


def inferred(
    key: str, *inputs: Any, outputs: int = 1, version: int | None = None, **attributes: Any
) -> list[ValueType]:
    """Return the types that an operator infers."""
    node = node_of(key, inputs, attributes, outputs, version)
    return op_spec(key, version).infer(node)


def evaluated(
    key: str, *inputs: Any, outputs: int = 1, version: int | None = None, **attributes: Any
) -> list[Any]:
    """Return all results of an operator; integers among the inferred dimensions hold."""
    spec = op_spec(key, version)
    kinds = inferred(key, *inputs, outputs=outputs, version=version, **attributes)
    arrays = [None if v is None else np.asarray(v) for v in inputs]
    before = [None if v is None else v.copy() for v in arrays]
    results = spec.evaluate(arrays, spec.with_defaults(attributes), Context(outputs=outputs))
    for array, copy in zip(arrays, before, strict=True):
        if array is not None and copy is not None:
            np.testing.assert_array_equal(array, copy)
    assert len(kinds) == len(results) == outputs
    for kind, result in zip(kinds, results, strict=True):
        assert kind.dtype == dtype_of(result)
        if kind.shape is not None:
            assert len(kind.shape) == result.ndim
            for dim, length in zip(kind.shape, result.shape, strict=True):
                assert isinstance(dim, str) or dim == length
    return results


def evaluated_one(key: str, *inputs: Any, version: int | None = None, **attributes: Any) -> Any:
    """Return the only result of an operator."""
    return evaluated(key, *inputs, version=version, **attributes)[0]
