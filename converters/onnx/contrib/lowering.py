"""Writes the standard nodes that stand for one node of onnxruntime's domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte.converters.onnx.contrib.constant_inputs import make_constant
from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.graph import CANONICAL_OPSET, Graph, Node, Value
from halfbyte.ir.ops import op_key, since_version, spec_of
from halfbyte.ir.ops.spec import attribute, input_at
from halfbyte.ir.tensor import Tensor, tensor_from_array

Array = np.ndarray[Any, np.dtype[Any]]


class Lowering:
    """Puts nodes before `node`, in their newest version, and at the end takes its place.

    Types are inferred while nodes are added, so that later rules can look at them.
    """

    def __init__(self, graph: Graph, node: Node) -> None:
        """Take the node to be replaced and its graph."""
        self.graph, self.node = graph, node
        self._made: set[Value] = set()

    def given(self, index: int) -> Value | None:
        """Return an input, None when omitted."""
        return input_at(self.node, index)

    def need(self, index: int) -> Value:
        """Return an input that must be there.

        Raises:
            GraphError: it is missing.
        """
        value = self.given(index)
        if value is None:
            raise GraphError(self.node.label, f"input {index} is missing; give it")
        return value

    def option(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node or `default`."""
        return attribute(self.node, name, default)

    def required(self, name: str) -> Any:
        """Return an attribute that must be there.

        Raises:
            GraphError: it is missing.
        """
        found = self.option(name)
        if found is None:
            raise GraphError(self.node.label, f"attribute {name!r} is missing; give it")
        return found

    def stored(self, index: int) -> Tensor:
        """Return the tensor of an input that must be a constant, or follow from constants.

        Raises:
            UnsupportedError: it is computed while the model runs.
        """
        if self.need(index).constant is None:
            make_constant(self.graph, self.need(index))
        value = self.need(index)
        if value.constant is None:
            raise self.refuse(f"input {index} ({value.name!r}) that is no constant")
        return value.constant

    def refuse(self, what: str, supported: Sequence[str] = (), advice: str = "") -> Exception:
        """Return the error for a form of the operator that is not read."""
        return UnsupportedError(what, f"graph node {self.node.label}", list(supported), advice)

    def used(self, index: int) -> bool:
        """Whether anything reads an output of the node."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses) or value in self.graph.outputs

    def add(self, op: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> Value:
        """Add a node with one output and return it."""
        return self.many(op, inputs, 1, domain=domain, **attributes)[0]

    def many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        count: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with `count` outputs and return them."""
        version = since_version(op_key(op, domain), CANONICAL_OPSET) or 1
        stem = self.node.outputs[0].name if self.node.outputs else self.node.op
        outputs = [Value(self.graph.fresh_name(f"{stem}.{op.lower()}")) for _ in range(count)]
        kept = {name: value for name, value in attributes.items() if value is not None}
        node = Node(
            op, list(inputs), outputs, kept, domain, version, self.node.layer, self.node.origin
        )
        for value, kind in zip(outputs, spec_of(node).infer(node), strict=False):
            value.dtype, value.shape = kind.dtype, kind.shape
        self.graph.insert(node, self.node)
        self._made.update(outputs)
        return outputs

    def array(self, array: Array, stem: str = "constant", *, fixed: bool = True) -> Value:
        """Return a constant; with fixed=False it takes the floating type of what it meets."""
        name = self.graph.fresh_name(f"{self.node.outputs[0].name}.{stem}")
        return self.graph.add_constant(tensor_from_array(name, array), f"{name}.v", fixed=fixed)

    def ints(self, *values: int) -> Value:
        """Return an int64 vector."""
        return self.array(np.asarray(values, np.int64))

    def scalar(self, value: int) -> Value:
        """Return an int64 scalar."""
        return self.array(np.asarray(value, np.int64))

    def number(self, value: float) -> Value:
        """Return a scalar of the floating type of what it meets."""
        return self.array(np.asarray(value, np.float32), fixed=False)

    def weight(self, tensor: Tensor) -> Value:
        """Return the value of a stored weight under its own name, or one derived from it."""
        value = self.graph.add_constant(tensor)
        if value.name != tensor.name:
            self.graph.set_constant(value.name, tensor.renamed(value.name))
        return value

    def like(self, value: Value, other: Value) -> Value:
        """Return `value` in the dtype of `other`."""
        if value.dtype is not None and value.dtype == other.dtype:
            return value
        return self.add("CastLike", value, other)

    def cast(self, value: Value, dtype: str) -> Value:
        """Return `value` in a dtype."""
        return value if value.dtype == dtype else self.add("Cast", value, to=dtype)

    def reshape(self, value: Value, *shape: int) -> Value:
        """Return `value` in another shape; 0 keeps a dimension."""
        return self.add("Reshape", value, self.ints(*shape))

    def transpose(self, value: Value, *order: int) -> Value:
        """Return `value` with its axes in another order."""
        return self.add("Transpose", value, perm=list(order))

    def dim(self, value: Value, axis: int) -> Value:
        """Return one dimension as an int64 vector of one element."""
        shape = value.shape
        if shape is not None and isinstance(shape[axis], int):
            return self.ints(int(shape[axis]))
        return self.add("Slice", self.add("Shape", value), *self._range(axis))

    def _range(self, axis: int) -> tuple[Value, Value]:
        stop = axis + 1 if axis != -1 else np.iinfo(np.int64).max
        return self.ints(axis), self.ints(int(stop))

    def slice(self, value: Value, axis: int, start: Value | int, stop: Value | int) -> Value:
        """Return elements [start, stop) of one axis."""
        first, last = (v if isinstance(v, Value) else self.ints(v) for v in (start, stop))
        return self.add("Slice", value, first, last, self.ints(axis))

    def rank(self, index: int) -> int:
        """Return the rank of an input.

        Raises:
            UnsupportedError: it is not known before the model runs.
        """
        value = self.need(index)
        if value.shape is None:
            raise self.refuse(f"input {index} ({value.name!r}) of unknown rank")
        return len(value.shape)

    def finish(self, *results: Value | None) -> None:
        """Let `results` take the places of the node's outputs and remove the node.

        Raises:
            UnsupportedError: an output is read for which there is no result.
        """
        for index, old in enumerate(self.node.outputs):
            new = results[index] if index < len(results) else None
            if new is None:
                if self.used(index):
                    raise self.refuse(f"output {index} ({old.name!r})")
                continue
            if new not in self._made:
                new = self.add("Identity", new)
            self._made.discard(new)
            new.name, new.dtype = old.name, new.dtype or old.dtype
            new.shape = old.shape if new.shape is None else new.shape
            self.graph.replace_all_uses(old, new)
        inputs = [value for value in self.node.inputs if value is not None]
        self.graph.remove(self.node)
        for value in set(inputs):
            if value.constant is not None and not value.uses and value not in self.graph.outputs:
                self.graph.remove_constant(value.name)
