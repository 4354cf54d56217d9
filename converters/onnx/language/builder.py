"""What the lowerings share: the graph being made, its constants, and which weight each holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import ONNX_DOMAIN, Dim, Graph, Node, Value
from halfbyte.ir.ops import OPS, op_spec, since_version
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.tensor import Part, Tensor, tensor_from_array

MICROSOFT = "com.microsoft"
FLOAT32 = "float32"
OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization


@dataclass
class Holding:
    """Which constants of the graph hold a weight: {array: constant}; `style` of its codes."""

    tensor: Tensor
    constants: dict[str, str] = field(default_factory=dict)
    style: str = ""


class OnnxBuilder:
    """A graph of ONNX operators under construction."""

    def __init__(self, name: str, opset: int = OPSET) -> None:
        """Start an empty graph of operators in force at an opset."""
        self.graph, self.opset = Graph(name), opset
        self.holdings: dict[int, Holding] = {}
        self._shared: dict[Any, Value] = {}
        self._kept: list[Tensor] = []

    def op(
        self,
        op: str,
        *inputs: Value | None,
        name: str,
        dtype: str | None = FLOAT32,
        shape: Sequence[Dim] | None = None,
        layer: int | None = None,
        domain: str = ONNX_DOMAIN,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output; without a shape it is left open."""
        return self.graph.add(
            op,
            inputs,
            name=name,
            dtype=dtype,
            shape=shape,
            domain=domain,
            since_version=version_of(op, domain, self.opset),
            layer=layer,
            **attributes,
        )

    def node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        *,
        layer: int | None = None,
        domain: str = ONNX_DOMAIN,
        **attributes: Any,
    ) -> Node:
        """Add a node with several outputs."""
        version = version_of(op, domain, self.opset)
        made = Node(op, list(inputs), list(outputs), attributes, domain, version, layer)
        return self.graph.insert(made)

    def value(self, name: str, dtype: str = FLOAT32, shape: Sequence[Dim] | None = None) -> Value:
        """Return a fresh value for an output of a node with several."""
        return Value(self.graph.fresh_name(name), dtype, None if shape is None else tuple(shape))

    def array(self, name: str, array: NDArray[Any]) -> Value:
        """Return a small constant; an equal one is used again."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.graph.add_constant(tensor_from_array(name, array), fixed=True)
        return self._shared[key]

    def ints(self, *values: int) -> Value:
        """Return a constant list of integers."""
        name = f"/constants/{'_'.join(map(str, values)).replace('-', 'minus_')}"
        return self.array(name, np.asarray(values, np.int64))

    def scalar(self, value: float | int, dtype: str = "int64") -> Value:
        """Return a constant scalar."""
        name = f"/constants/{dtype}/{value}".replace("-", "minus_")
        return self.array(name, np.asarray(value, dtype))

    def part(self, name: str, dtype: str, shape: Sequence[int], part: Part) -> Value:
        """Return a constant of any shape over the elements of a part, in its order."""
        rows = int(np.prod(shape[:-1])) if shape else 1
        columns = int(shape[-1]) if shape else 1
        held = part if part.shape == (rows, columns) else ReshapedPart(part, (rows, columns))
        tensor = Tensor(name, tuple(int(n) for n in shape), Dense(dtype), {"data": held})
        return self.graph.add_constant(tensor, name, fixed=True)

    def once(self, key: Any, make: Any) -> Value:
        """Return the value made for `key`, making it at the first call."""
        if key not in self._shared:
            self._shared[key] = make()
        found: Value = self._shared[key]
        return found

    def holding(self, tensor: Tensor) -> Holding:
        """Return the record of what holds a weight."""
        if id(tensor) not in self.holdings:
            self.holdings[id(tensor)] = Holding(tensor)
        return self.holdings[id(tensor)]

    def stored(self, tensor: Tensor) -> Value:
        """Return a dense constant as it is stored."""

        def make() -> Value:
            value = self.part(tensor.name, dtype_name(tensor), tensor.shape, tensor.parts["data"])
            self.holding(tensor).constants["data"] = value.name
            return value

        return self.once(("stored", id(tensor)), make)

    def read(self, tensor: Tensor) -> Value:
        """Return a dense constant in float32 if it is floating, else as it is stored."""
        value = self.stored(tensor)
        return self.float32(value)

    def float32(self, value: Value) -> Value:
        """Return a floating value in float32; a runtime folds the cast of a constant."""
        if value.dtype == FLOAT32 or value.dtype not in FLOATING:
            return value
        return self.once(("float32", id(value)), lambda: self.cast(value, FLOAT32))

    def cast(self, value: Value, dtype: str) -> Value:
        """Return a value in another dtype."""
        name = f"{value.name}/{dtype}"
        return self.op("Cast", value, name=name, dtype=dtype, shape=value.shape, to=dtype)


def version_of(op: str, domain: str = ONNX_DOMAIN, opset: int = OPSET) -> int:
    """Return an operator's since_version at an opset; 1 for those of other domains."""
    if domain != ONNX_DOMAIN or op not in OPS:
        return 1
    return since_version(op, opset) or op_spec(op).versions[0]


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype of a dense tensor."""
    encoding = tensor.encoding
    assert isinstance(encoding, Dense), f"{tensor.name} is encoded as {encoding}"
    return encoding.dtype_name
