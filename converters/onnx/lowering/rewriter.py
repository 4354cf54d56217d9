"""Putting standard nodes in the place of a node, in the forms that one opset has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Dim, Graph, Node, Value
from halfbyte.ir.ops import infer, since_version
from halfbyte.ir.ops.spec import UNKNOWN
from halfbyte.ir.tensor import Tensor, tensor_from_array

MICROSOFT = "com.microsoft"


@dataclass
class Rewriter:
    """One graph on its way to an opset; new nodes go before `at`.

    shared: the constants that more than linear layers read.
    """

    graph: Graph
    opset: int
    flavour: str = ""
    at: Node | None = None
    shared: set[Value] = field(default_factory=set)
    _made_from: list[tuple[Value, str, str]] = field(default_factory=list)
    _made: dict[tuple[object, ...], Value] = field(default_factory=dict)
    _held: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.graph.constants:
            value = self.graph.constant_value(name)
            if not all(_is_linear(node, index) for node, index in value.uses):
                self.shared.add(value)

    def add(
        self, op: str, *inputs: Value | None, outputs: int = 1, name: str = "", **attributes: Any
    ) -> Value:
        """Add a standard node before the one that is replaced; return its first output.

        Raises:
            UnsupportedError: the opset does not have the operator.
        """
        at = self.at
        version = since_version(op, self.opset)
        if version is None:
            where = "graph" if at is None else f"node {at.label}"
            raise UnsupportedError(f"opset {self.opset}, which lacks {op},", where)
        stem = name or (at.outputs[0].name if at is not None else op.lower())
        made = [Value(self.graph.fresh_name(f"{stem}.{op.lower()}")) for _ in range(outputs)]
        layer = None if at is None else at.layer
        node = Node(op, list(inputs), made, attributes, "", version, layer)
        self.graph.insert(node, before=at)
        for value, kind in zip(made, infer(node), strict=False):
            value.dtype, value.shape = kind.dtype, kind.shape
        return made[0]

    def add_foreign(
        self, op: str, *inputs: Value, dtype: str, shape: Sequence[Dim] | None, **attributes: Any
    ) -> Value:
        """Add a node of onnxruntime's domain before the one that is replaced."""
        at = self.at
        stem = at.outputs[0].name if at is not None else op.lower()
        made = Value(self.graph.fresh_name(f"{stem}.{op.lower()}"), dtype)
        made.shape = None if shape is None else tuple(shape)
        layer = None if at is None else at.layer
        self.graph.insert(Node(op, list(inputs), [made], attributes, MICROSOFT, 1, layer), at)
        return made

    def constant(self, name: str, values: Any, dtype: str = "int64") -> Value:
        """Return a small constant; equal ones are made once."""
        array = np.asarray(values, np.dtype(dtype)) if dtype != "bfloat16" else _bfloat16(values)
        key = ("constant", dtype, array.shape, array.tobytes())
        if key not in self._made:
            tensor = tensor_from_array(f"halfbyte.{name}", array)
            self._made[key] = self.graph.add_constant(tensor, fixed=True)
        return self._made[key]

    def weight(self, tensor: Tensor, name: str, source: str) -> Value:
        """Return the constant for something made from weight `source`."""
        value = self.graph.add_constant(tensor, name, fixed=True)
        self._made_from.append((value, name, source))
        return value

    def finish(self) -> dict[str, str]:
        """Give constants the names that were asked for where they are free again.

        Returns the weight that each constant was made from, by the constant's name.
        """
        taken = {value.name for value in self.graph.values()}
        names: dict[str, str] = {}
        for value, name, _ in self._made_from:
            current = names.get(value.name, value.name)
            if current != name and name not in taken and current in taken:
                taken.remove(current)
                taken.add(name)
                names[value.name] = name
        self.graph.rename_constants(names)
        return {value.name: source for value, _, source in self._made_from}

    def once(self, key: tuple[object, ...], make: Callable[[], Value]) -> Value:
        """Return what `make()` gave for this key the first time.

        It stands before the node then at hand; nodes are replaced in order, so all others that ask
        for it come later.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def hold(self, tensor: Tensor) -> int:
        """Return an id of a tensor that stays its own while the graph is rewritten."""
        self._held.append(tensor)
        return id(tensor)

    def replace(self, node: Node, *results: Value) -> None:
        """Let `results` stand for the outputs of a node, under their names, and drop the node."""
        for old, new in zip(node.outputs, results, strict=True):
            dtype, shape = old.dtype, old.shape
            self.graph.replace_all_uses(old, new)
            if new.producer is not None and new.producer is not node:
                new.name, old.name = old.name, new.name
                new.dtype = dtype if dtype is not None else new.dtype
                new.shape = better_shape(shape, new.shape)
        constants = [v for v in node.inputs if v is not None and v.constant is not None]
        self.graph.remove(node)
        for value in constants:
            self.drop_unused(value)

    def drop_unused(self, value: Value) -> None:
        """Remove a constant that nothing reads any more."""
        if (
            not value.uses
            and value not in self.graph.outputs
            and value.name in self.graph.constants
        ):
            self.graph.remove_constant(value.name)

    def cast(self, value: Value, dtype: str) -> Value:
        """Return a value in another dtype; a constant is cast once for all its readers."""
        if value.dtype == dtype:
            return value
        if value.constant is None:
            return self.add("Cast", value, to=dtype)
        if value.constant.size <= 1 and isinstance(value.constant.encoding, Dense):
            return self.constant(value.name, value.constant.numpy(), dtype)
        key = ("cast", value, dtype)
        return self.once(key, lambda: self.add("Cast", value, name=value.name, to=dtype))


def _is_linear(node: Node, index: int) -> bool:
    return node.domain == HALFBYTE_DOMAIN and node.op == "Linear" and index == 1


def _bfloat16(values: Any) -> Any:
    import ml_dtypes

    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16)


def better_shape(
    declared: Sequence[Dim] | None, inferred: Sequence[Dim] | None
) -> tuple[Dim, ...] | None:
    """Return the declared shape, unknown dimensions filled from the inferred one."""
    if declared is None or inferred is None or len(declared) != len(inferred):
        found = declared if declared is not None else inferred
        return None if found is None else tuple(found)
    return tuple(i if d == UNKNOWN else d for d, i in zip(declared, inferred, strict=True))
