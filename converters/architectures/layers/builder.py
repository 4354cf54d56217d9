"""What the subgraph builders share: the graph, the bound weights and node shorthands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import HALFBYTE_DOMAIN, ONNX_DOMAIN, Dim, Graph, Node, Value
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor, tensor_from_array

FLOAT32 = "float32"

# since_version of every ai.onnx operator used, in the canonical opset
VERSIONS = {
    "Add": 14, "Cast": 24, "Cos": 22, "Div": 14, "Gather": 13, "Gelu": 20, "Greater": 13,
    "LayerNormalization": 17, "Max": 13, "Mul": 14, "Pow": 15, "RMSNormalization": 23, "Range": 11,
    "ReduceMax": 20, "ReduceSum": 13, "Relu": 14, "Reshape": 24, "RotaryEmbedding": 23,
    "Shape": 24, "Sigmoid": 13, "Sin": 22, "Softmax": 13, "Split": 18, "Squeeze": 24, "Sub": 14,
    "Swish": 24, "Tanh": 13, "TopK": 24, "Unsqueeze": 24, "Where": 16,
}  # fmt: skip


class LayerBuilder:
    """A graph under construction. Values keep the shape of their first input unless told."""

    def __init__(self, name: str, weights: Mapping[WeightKey, Tensor]) -> None:
        """Start an empty graph over bound weights."""
        self.graph = Graph(name)
        self.weights = weights

    def op(
        self,
        op: str,
        *inputs: Value | None,
        name: str,
        layer: int | None = None,
        shape: tuple[Dim, ...] | None = None,
        dtype: str = FLOAT32,
        **attributes: Any,
    ) -> Value:
        """Add an ai.onnx or halfbyte node with one output."""
        own = op not in VERSIONS
        first = inputs[0]
        return self.graph.add(
            op,
            inputs,
            name=name,
            dtype=dtype,
            shape=first.shape if shape is None and first is not None else shape,
            domain=HALFBYTE_DOMAIN if own else ONNX_DOMAIN,
            since_version=1 if own else VERSIONS[op],
            layer=layer,
            **attributes,
        )

    def split(
        self, x: Value, names: list[str], widths: list[int], layer: int | None = None
    ) -> list[Value]:
        """Cut the last axis into pieces of these widths."""
        sizes = self.constant("split_sizes", np.asarray(widths, np.int64))
        leading = (x.shape or ())[:-1]
        outputs = [
            Value(self.graph.fresh_name(name), FLOAT32, (*leading, width))
            for name, width in zip(names, widths, strict=True)
        ]
        version = VERSIONS["Split"]
        node = Node("Split", [x, sizes], outputs, {"axis": -1}, "", version, layer)
        return list(self.graph.insert(node).outputs)

    def constant(self, name: str, array: NDArray[Any]) -> Value:
        """Return a constant held in memory; an equal one of the same name is used again."""
        held = self.graph.constants.get(name)
        if held is not None and np.array_equal(held.numpy(), array):
            return self.graph.constant_value(name)
        return self.graph.add_constant(tensor_from_array(name, array))

    def find(self, role: Role, layer: int | None = None, kind: str = "weight") -> Value | None:
        """Return a weight as stored, or None where the model has none."""
        tensor = self.weights.get(WeightKey(role, layer, kind))
        return None if tensor is None else self.graph.add_constant(tensor)

    def weight(self, role: Role, layer: int | None = None, kind: str = "weight") -> Value:
        """Return a weight that the binding made sure of, as stored.

        Every operator reads a stored floating constant in the dtype that it computes in.
        """
        return self.graph.add_constant(self.weights[WeightKey(role, layer, kind)])

    def linear(self, x: Value, role: Role, name: str, layer: int | None = None) -> Value:
        """Apply weight [out, in] of any encoding and the bias, if there is one."""
        weight = self.weight(role, layer)
        return self.project(x, weight, self.find(role, layer, "bias"), name, layer)

    def project(
        self, x: Value, weight: Value, bias: Value | None, name: str, layer: int | None = None
    ) -> Value:
        """Apply a weight [out, in] to the last axis."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        width = (weight.shape or (0,))[0]
        shape = (*(x.shape or ())[:-1], width)
        return self.op("Linear", *inputs, name=name, layer=layer, shape=shape)
