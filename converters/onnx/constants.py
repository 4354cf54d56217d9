"""Constant nodes as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from halfbyte.converters.onnx.attributes import AttributeReader
from halfbyte.converters.onnx.messages import AttributeMessage, NodeMessage
from halfbyte.errors import FormatError
from halfbyte.ir.tensor import Tensor, tensor_from_array

PLAIN: dict[str, Any] = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_string": object,
    "value_strings": object,
}


def constant_tensor(
    reader: AttributeReader, held: Mapping[str, AttributeMessage], name: str, node: NodeMessage
) -> Tensor:
    """Return the tensor of a Constant node, under `name`; a stored one stays in its file.

    Raises:
        FormatError: it holds no value or several.
    """
    if len(held) != 1:
        rule = f"Constant {name!r} has {len(held)} values, one was required"
        raise FormatError(reader.buffer.path, rule, node.offset)
    kind, message = next(iter(held.items()))
    if kind == "value" and message.t is not None:
        return reader.tensors.tensor(message.t, name)
    if kind == "sparse_value" and message.sparse_tensor is not None:
        return reader.tensors.sparse(message.sparse_tensor, name)
    if kind not in PLAIN:
        rule = f"Constant {name!r} holds {kind!r}, one of value, sparse_value, {', '.join(PLAIN)}"
        raise FormatError(reader.buffer.path, f"{rule} was required", node.offset)
    value = reader.value(message)
    array = np.empty(len(value), object) if kind == "value_strings" else None
    try:
        if array is not None:
            array[:] = value
        else:
            array = np.asarray(value, PLAIN[kind])
    except (TypeError, ValueError, OverflowError) as error:
        rule = f"Constant {name!r} holds a {kind} of another type"
        raise FormatError(reader.buffer.path, rule, node.offset) from error
    return tensor_from_array(name, array)
