"""A graph as ONNX protos: names, types, attributes, subgraphs. Constants are only listed.

Inside a subgraph no name of the graphs around it is used again; what a subgraph captures has the
name that it has outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.onnx.initializers import Initializer
from halfbyte.converters.onnx.opset_choice import DEFAULT_DOMAINS, schema_at, written_inputs
from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.dtypes import ONNX_NUMBERS, dtype_name
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Dim, Graph, Node, Value
from halfbyte.ir.ops import OPS, op_key, spec_of
from halfbyte.ir.ops.spec import UNKNOWN
from halfbyte.ir.tensor import Tensor, tensor_from_array

INNER_BYTES = 1024  # a subgraph's constants above this stand in the outermost graph


def type_proto(dtype: str, shape: Sequence[Dim] | None) -> Any:
    """Return the TypeProto of a dtype, composed ones included, and a shape."""
    import onnx

    kind, _, inner = dtype.partition(".")
    result = onnx.TypeProto()
    if kind == "sequence":
        result.sequence_type.elem_type.CopyFrom(type_proto(inner, None))
    elif kind == "optional":
        result.optional_type.elem_type.CopyFrom(type_proto(inner, None))
    else:
        result.tensor_type.elem_type = ONNX_NUMBERS[dtype]
        if shape is not None:
            result.tensor_type.shape.SetInParent()
            for dim in shape:
                entry = result.tensor_type.shape.dim.add()
                if isinstance(dim, str):
                    if dim != UNKNOWN:
                        entry.dim_param = dim
                else:
                    entry.dim_value = int(dim)
    return result


def value_proto(name: str, value: Value) -> Any:
    """Return the ValueInfoProto of a value; without a type where it is not known."""
    import onnx

    result = onnx.ValueInfoProto(name=name)
    if value.dtype is not None:
        result.type.CopyFrom(type_proto(value.dtype, value.shape))
    return result


def tensor_proto(initializer: Initializer, data: bool = True) -> Any:
    """Return the TensorProto of a constant; without `data` only name, type and dimensions."""
    import onnx

    dims = [int(dim) for dim in initializer.tensor.shape]
    number = ONNX_NUMBERS[initializer.dtype]
    result = onnx.TensorProto(name=initializer.name, dims=dims, data_type=number)
    if initializer.is_text:
        result.string_data.extend(initializer.texts())
    elif data:
        result.raw_data = initializer.raw()
    return result


class ProtoBuilder:
    """Builds the protos of one model. `constants` collects what the outermost graph stores."""

    def __init__(self, graph: Graph, opset: int) -> None:
        """Take the names of the outermost graph as they are."""
        self.opset = opset
        self.constants: list[Initializer] = []
        self._hoisted: dict[int, str] = {}
        self._taken = {value.name for value in graph.values()}
        self._node_names: set[str] = set()
        names = {value: value.name for value in graph.values()}
        for name, tensor in graph.constants.items():
            self.constants.append(Initializer(name, tensor))
        self.graph = self._graph(graph, names, inputs=graph.inputs)

    def _fresh(self, name: str, taken: set[str]) -> str:
        stem, count = name or "value", 0
        name = stem
        while name in taken:
            count += 1
            name = f"{stem}.{count}"
        taken.add(name)
        return name

    def _graph(self, graph: Graph, names: Mapping[Value, str], inputs: Sequence[Value]) -> Any:
        import onnx

        result = onnx.GraphProto(name=graph.name or "graph")
        result.input.extend(value_proto(names[value], value) for value in inputs)
        outputs = [names[value] for value in graph.outputs]
        if len(set(outputs)) != len(outputs):
            raise GraphError(graph.name, "names one value as two outputs; give each its own")
        result.output.extend(value_proto(names[value], value) for value in graph.outputs)
        known = {*outputs, *(names[value] for value in inputs)}
        for node in graph.nodes:
            result.node.append(self._node(node, names, set(graph.outputs)))
            for value in node.outputs:
                shown = value.dtype is not None and value.name and names[value] not in known
                if shown and names[value] in result.node[-1].output:
                    result.value_info.append(value_proto(names[value], value))
        return result

    def _node(self, node: Node, names: Mapping[Value, str], results: set[Value]) -> Any:
        import onnx

        if node.domain == HALFBYTE_DOMAIN:
            raise UnsupportedError(f"operator halfbyte.{node.op} in ONNX", f"node {node.label}")
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        result = onnx.NodeProto(op_type=node.op, name=self._node_name(node))
        if domain:
            result.domain = domain
        result.input.extend("" if v is None else names[v] for v in written_inputs(node))
        result.output.extend(_output_names(node, names, results))
        for name, value in node.attributes.items():
            if value is not None and name != "captures":
                entry = self._attribute(node, name, value, names)
                if entry is not None:
                    result.attribute.append(entry)
        return result

    def _node_name(self, node: Node) -> str:
        """Return the name that the node came with, else that of its first output."""
        own = node.origin.name if node.origin is not None else ""
        return self._fresh(own or (node.outputs[0].name if node.outputs else ""), self._node_names)

    def _attribute(self, node: Node, name: str, value: Any, names: Mapping[Value, str]) -> Any:
        """Return one attribute; None for a default that this opset does not spell out."""
        import onnx

        result: Any = onnx.AttributeProto(name=name)
        kind: Any = onnx.AttributeProto
        if node.domain in DEFAULT_DOMAINS:
            schema = schema_at(node.op, self.opset)
            if name not in schema.attributes:
                return None
            result.type = int(schema.attributes[name].type.value)
            if spec_of(node).attributes[name].kind == "dtype" and result.type == kind.INT:
                value = ONNX_NUMBERS[dtype_name(value)]
        else:
            result.type = _declared_kind(node, name) or _foreign_kind(node, name, value)
        if result.type == kind.GRAPH:
            result.g.CopyFrom(self._subgraph(node, value, names))
        elif result.type == kind.GRAPHS:
            result.graphs.extend(self._subgraph(node, graph, names) for graph in value)
        else:
            _fill(result, value)
        return result

    def _subgraph(self, node: Node, graph: Graph, outer: Mapping[Value, str]) -> Any:
        captures = node.attributes.get("captures") or 0
        formal = graph.inputs[: len(graph.inputs) - captures]
        names = dict(outer)
        for inner, value in zip(
            graph.inputs[len(formal) :], node.inputs[len(node.inputs) - captures :], strict=True
        ):
            if value is None:
                raise GraphError(node.label, f"captures nothing for {inner.name!r}; give a value")
            names[inner] = outer[value]
        saved = set(self._taken)
        small: list[Initializer] = []
        for name, tensor in graph.constants.items():
            names[graph.constant_value(name)] = self._inner_constant(name, tensor, small)
        for value in [*formal, *(v for entry in graph.nodes for v in entry.outputs)]:
            names[value] = self._fresh(value.name, self._taken)
        result = self._graph(graph, names, formal)
        result.initializer.extend(tensor_proto(initializer) for initializer in small)
        # Names of one branch are free again for the next; hoisted constants are not.
        self._taken = saved | set(self._hoisted.values())
        return result

    def _inner_constant(self, name: str, tensor: Tensor, small: list[Initializer]) -> str:
        if Initializer(name, tensor).nbytes <= INNER_BYTES:
            small.append(Initializer(self._fresh(name, self._taken), tensor))
            return small[-1].name
        if id(tensor) not in self._hoisted:
            fresh = self._fresh(name, self._taken)
            self._hoisted[id(tensor)] = fresh
            self.constants.append(Initializer(fresh, tensor))
        return self._hoisted[id(tensor)]


def _output_names(node: Node, names: Mapping[Value, str], results: set[Value]) -> list[str]:
    """Return the outputs; optional ones before the last that nobody reads are left out."""
    found = [names[value] for value in node.outputs]
    if node.domain not in DEFAULT_DOMAINS:
        return found
    formal = spec_of(node).outputs
    for index, value in enumerate(node.outputs[:-1]):
        optional = index < len(formal) and formal[index].endswith("?")
        if optional and not value.uses and value not in results:
            found[index] = ""
    return found


def _declared_kind(node: Node, name: str) -> int | None:
    """Return the AttributeProto type that our table gives for an operator of another domain."""
    from onnx import AttributeProto

    key = op_key(node.op, node.domain)
    rule = spec_of(node).attributes.get(name) if key in OPS else None
    return None if rule is None else int(getattr(AttributeProto, rule.kind.upper()))


def _foreign_kind(node: Node, name: str, value: Any) -> int:
    """Return the AttributeProto type of a value of an operator without a schema here."""
    from onnx import AttributeProto as Proto

    if isinstance(value, (list, tuple)):
        first = _foreign_kind(node, name, value[0]) if value else Proto.INT
        plural: dict[Any, Any] = {
            Proto.INT: Proto.INTS,
            Proto.FLOAT: Proto.FLOATS,
            Proto.STRING: Proto.STRINGS,
            Proto.GRAPH: Proto.GRAPHS,
            Proto.TENSOR: Proto.TENSORS,
        }
        return int(plural[first])
    for types, kind in (
        ((bool, int, np.integer, np.bool_), Proto.INT),
        ((float, np.floating), Proto.FLOAT),
        ((str, bytes), Proto.STRING),
        ((Graph,), Proto.GRAPH),
        ((np.ndarray, Tensor), Proto.TENSOR),
    ):
        if isinstance(value, types):
            return int(kind)
    raise GraphError(node.label, f"attribute {name!r} is a {type(value).__name__}, no ONNX type")


def _fill(result: Any, value: Any) -> None:
    from onnx import AttributeProto as Proto

    kind = result.type
    if kind == Proto.INT:
        result.i = int(value)
    elif kind == Proto.FLOAT:
        result.f = float(value)
    elif kind == Proto.STRING:
        result.s = _text(value)
    elif kind == Proto.INTS:
        result.ints.extend(int(v) for v in value)
    elif kind == Proto.FLOATS:
        result.floats.extend(float(v) for v in value)
    elif kind == Proto.STRINGS:
        result.strings.extend(_text(v) for v in value)
    elif kind == Proto.TENSOR:
        result.t.CopyFrom(_plain_tensor(value))
    elif kind == Proto.TENSORS:
        result.tensors.extend(_plain_tensor(v) for v in value)
    else:
        assert kind == Proto.TYPE_PROTO, kind
        result.tp.CopyFrom(type_proto(dtype_name(value), None))


def _text(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def _plain_tensor(value: Any) -> Any:
    tensor = value if isinstance(value, Tensor) else tensor_from_array("", np.asarray(value))
    return tensor_proto(Initializer("", tensor))
