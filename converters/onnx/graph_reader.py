"""GraphProto as a graph: nodes in order, functions inlined, subgraphs with their captures.

Nodes keep the version that the file's opset gives them; types are filled in afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NoReturn

from halfbyte.converters.onnx.attributes import AttributeReader, AttributeType, adapted
from halfbyte.converters.onnx.constants import constant_tensor
from halfbyte.converters.onnx.functions import MAX_NODES, Functions
from halfbyte.converters.onnx.messages import (
    FunctionMessage,
    GraphMessage,
    NodeMessage,
    Span,
    ValueInfoMessage,
)
from halfbyte.converters.onnx.operators import version_of
from halfbyte.converters.onnx.order import OrderError, ordered
from halfbyte.converters.onnx.scope import (
    FreeNames,
    FreshNames,
    Given,
    Program,
    Scope,
    function_key,
    standard_domain,
)
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.converters.onnx.types import read_type
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.graph import Graph, Node, Origin, Value
from halfbyte.ir.ops import OPS, op_key, op_spec, since_version
from halfbyte.ir.tensor import Tensor

LAYER = re.compile(r"(?:^|[/._:])(?:layers?|blocks?|h)[/._](\d{1,6})(?=$|[/._:])")
# Loop's own inputs, which captures follow even where they are left out.
OWN_INPUTS = {"Loop": 2}


def layer_of(name: str) -> int | None:
    """Return the layer that a node's name tells, None where it tells none."""
    found = LAYER.search(name)
    return None if found is None else int(found.group(1))


class GraphReader:
    """Builds the graph of one file.

    declared: where the types of values stand. missing: operators that are unknown, with how often
    they are met. stored: every stored tensor by name, in order; initializers: which of them are
    such, of subgraphs too. notes: sentences for the user.
    """

    def __init__(self, tensors: TensorReader, functions: Functions) -> None:
        """Take the readers of tensors and of functions."""
        self.tensors = tensors
        self.buffer = tensors.buffer
        self.attributes = AttributeReader(tensors)
        self.functions = functions
        self.free = FreeNames()
        self.declared: dict[Value, Span | None] = {}
        self.missing: Counter[str] = Counter()
        self.stored: dict[str, Tensor] = {}
        self.initializers: set[str] = set()
        self.notes: list[str] = []
        self._constants: dict[tuple[int, int], Value] = {}
        self._fresh_name = FreshNames()
        self._made = 0

    def fail(self, rule: str, offset: int) -> NoReturn:
        """Raise the error for a broken rule."""
        raise FormatError(self.buffer.path, rule, offset)

    def graph(self, message: GraphMessage, opsets: Mapping[str, int]) -> Graph:
        """Return the outermost graph.

        Raises:
            FormatError: names, order or attributes break a rule.
        """
        graph = Graph(message.name or "main")
        scope = Scope(graph, Program(opsets))
        self._initializers(scope, message)
        for name, bound in scope.names.items():
            if isinstance(bound, Tensor):
                self._constant(graph, bound, name)
        for info in message.input:
            if not isinstance(scope.names.get(info.name), Tensor):
                graph.inputs.append(self._input(scope, info))
        self._body(scope, message.node, message.value_info)
        self._outputs(scope, message.output)
        return graph

    def _initializers(self, scope: Scope, message: GraphMessage) -> None:
        for tensor in message.initializer:
            self._store(scope, tensor.name, self.tensors.tensor(tensor), tensor.offset)
        for sparse in message.sparse_initializer:
            if sparse.values is None:
                self.fail("a sparse initializer has no values", sparse.offset)
            self._store(scope, sparse.values.name, self.tensors.sparse(sparse), sparse.offset)

    def _store(self, scope: Scope, name: str, tensor: Tensor, offset: int) -> None:
        if not name or name in scope.names:
            self.fail(f"initializer {name!r} has no name or stands twice", offset)
        kept = self._kept(tensor)
        self.initializers.add(kept.name)
        scope.names[name] = kept

    def _kept(self, tensor: Tensor) -> Tensor:
        """Return a stored tensor under a name that no other one has."""
        name = self._fresh_name(tensor.name)
        self.stored[name] = tensor if name == tensor.name else tensor.renamed(name)
        return self.stored[name]

    def _input(self, scope: Scope, info: ValueInfoMessage) -> Value:
        if not info.name or info.name in scope.names:
            self.fail(f"input {info.name!r} has no name or stands twice", info.offset)
        kind = read_type(self.buffer, info.type)
        value = Value(scope.graph.fresh_name(info.name), kind.dtype, kind.shape)
        scope.names[info.name] = value
        return value

    def _body(
        self, scope: Scope, nodes: Sequence[NodeMessage], infos: Sequence[ValueInfoMessage]
    ) -> None:
        """Add the nodes of a graph or function in order."""
        try:
            sorted_nodes = ordered(
                nodes,
                scope.names.__contains__,
                lambda name: scope.holder(name) is not None,
                self.free.read_by,
            )
        except OrderError as error:
            label = f"node {error.node.name!r} ({error.node.op_type})"
            self.fail(f"{label} {error.rule}", error.node.offset)
        types = {info.name: info.type for info in infos}
        names: dict[str, str] = {}
        for node in sorted_nodes:
            for name in filter(None, node.output):
                if name in scope.results:
                    names[name] = scope.results[name]
                elif not self._may_be_stored(node):
                    names[name] = scope.graph.fresh_name(scope.prefix + name)
        for node in sorted_nodes:
            self._node(scope, node, names, types)

    def _outputs(self, scope: Scope, infos: Sequence[ValueInfoMessage]) -> None:
        if len({info.name for info in infos}) < len(infos) and scope.parent is None:
            self.fail("two outputs of the graph have one name", infos[0].offset)
        for info in infos:
            if not info.name or scope.holder(info.name) is None:
                self.fail(f"output {info.name!r} is made by no node", info.offset)
            value = self._operand(scope, info.name)
            if value is None:
                self.fail(f"output {info.name!r} is an input left out", info.offset)
            if value.name != info.name and scope.parent is None:
                value = self._identity(scope, value, scope.graph.fresh_name(info.name))
            self.declared.setdefault(value, info.type)
            scope.graph.outputs.append(value)

    def _identity(self, scope: Scope, value: Value, name: str) -> Value:
        """Return a value under a name of its own."""
        result = Value(name)
        version = since_version("Identity", scope.program.opsets.get("", 1))
        scope.graph.insert(Node("Identity", [value], [result], since_version=version or 1))
        return result

    def _constant(self, graph: Graph, tensor: Tensor, name: str) -> Value:
        key = id(graph), id(tensor)
        if key not in self._constants:
            self._constants[key] = graph.add_constant(tensor, name, fixed=True)
        return self._constants[key]

    def _operand(self, scope: Scope, name: str) -> Value | None:
        """Return the value that a name stands for in the graph of a scope."""
        bound = scope.find(name) if name else None
        if isinstance(bound, Tensor):
            return self._constant(scope.graph, bound, bound.name)
        return bound

    @staticmethod
    def _may_be_stored(message: NodeMessage) -> bool:
        """Whether the result may be a stored tensor, which needs no value of its own."""
        standard = standard_domain(message.domain) == ""
        return standard and message.op_type in ("Constant", "Identity")

    def _stored_source(self, scope: Scope, message: NodeMessage) -> Tensor | None:
        """Return the tensor of an Identity over one: exporters give equal weights two names so."""
        if not self._may_be_stored(message) or len(message.input) != 1:
            return None
        bound = scope.find(message.input[0])
        return bound if isinstance(bound, Tensor) and len(message.output) == 1 else None

    def _node(
        self,
        scope: Scope,
        message: NodeMessage,
        names: Mapping[str, str],
        types: Mapping[str, Span | None],
    ) -> None:
        self._count(1, message.offset)
        key = function_key(message)
        if key in self.functions.by_key:
            self._call(scope, message, self.functions.by_key[key], names)
        elif self._may_be_stored(message) and message.op_type == "Constant":
            self._constant_node(scope, message)
        elif (stored := self._stored_source(scope, message)) is not None:
            scope.names[message.output[0]] = stored
        else:
            self._plain_node(scope, message, names, types)

    def _constant_node(self, scope: Scope, message: NodeMessage) -> None:
        if len(message.output) != 1 or not message.output[0]:
            self.fail(f"Constant {message.name!r} needs one output", message.offset)
        held = {name: given.message for name, given in self._resolved(scope, message).items()}
        tensor = constant_tensor(self.attributes, held, scope.prefix + message.output[0], message)
        scope.names[message.output[0]] = self._kept(tensor)

    def _resolved(self, scope: Scope, message: NodeMessage) -> dict[str, Given]:
        """Return the attributes of a node; references into the calling node are looked up."""
        found: dict[str, Given] = {}
        given = scope.program.attributes
        for attribute in message.attribute:
            name = attribute.name
            if not name or name in found:
                self.fail(f"attribute {name!r} has no name or stands twice", attribute.offset)
            if not attribute.ref_attr_name:
                found[name] = Given(attribute, scope)
            elif given is None:
                self.fail(
                    f"attribute {name!r} refers to a function's outside of one", attribute.offset
                )
            elif attribute.ref_attr_name in given:
                found[name] = given[attribute.ref_attr_name]
                if found[name].message.g is not None and found[name].scope.graph is not scope.graph:
                    what = f"graph {name!r} given to a function and used in a graph inside it"
                    raise UnsupportedError(what, str(self.buffer.path), advice="inline it")
        return found

    def _plain_node(
        self,
        scope: Scope,
        message: NodeMessage,
        names: Mapping[str, str],
        types: Mapping[str, Span | None],
    ) -> None:
        domain = standard_domain(message.domain)
        version = version_of(domain, message.op_type, scope.program.opsets)
        if version is None:
            opset = scope.program.opsets.get(domain, 1)
            self.missing[f"{op_key(message.op_type, domain)} (opset {opset})"] += 1
        inputs = [self._operand(scope, name) for name in message.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        layer = layer_of(message.name)
        node = Node(
            message.op_type,
            inputs,
            [],
            domain=domain,
            since_version=version or 1,
            layer=scope.layer if layer is None else layer,
            origin=Origin(str(self.buffer.path), message.name, message.offset),
        )
        self._attributes(scope, message, node)
        written = list(message.output)
        while written and not written[-1]:
            written.pop()
        for name in written:
            stem = scope.prefix + name if name else "unused"
            value = Value(names.get(name) or scope.graph.fresh_name(stem))
            if name:
                scope.names[name] = value
            if types.get(name) is not None:
                self.declared[value] = types[name]
            node.outputs.append(value)
        if not written:
            self.fail(f"node {message.name!r} ({message.op_type}) has no output", message.offset)
        scope.graph.insert(node)

    def _attributes(self, scope: Scope, message: NodeMessage, node: Node) -> None:
        key = op_key(node.op, node.domain)
        rules = op_spec(key, node.since_version).attributes if key in OPS else {}
        resolved = self._resolved(scope, message)
        captured = self._captured(resolved.values())
        if captured:
            node.inputs += [None] * (OWN_INPUTS.get(node.op, 0) - len(node.inputs))
            node.inputs += captured
            node.attributes["captures"] = len(captured)
        for name, given in resolved.items():
            attribute = given.message
            if attribute.g is not None:
                node.attributes[name] = self._subgraph(given.scope, attribute.g, captured)
            elif attribute.type == AttributeType.GRAPHS:
                what = f"list of graphs {name!r} of {node.op}"
                raise UnsupportedError(what, str(self.buffer.path))
            else:
                node.attributes[name] = adapted(self.attributes.value(attribute), rules.get(name))
        if node.since_version == 1 and "consumed_inputs" not in rules:
            node.attributes.pop("consumed_inputs", None)

    def _captured(self, attributes: Iterable[Given]) -> dict[Value, str]:
        """Return the values that a node's graphs take from those around them, with a name."""
        found: dict[Value, str] = {}
        for given in attributes:
            graph = given.message.g
            for name in () if graph is None else self.free.of(graph):
                bound = given.scope.find(name)
                if isinstance(bound, Value):
                    found.setdefault(bound, name)
        return found

    def _subgraph(
        self, scope: Scope, message: GraphMessage, captured: Mapping[Value, str]
    ) -> Graph:
        """Return a subgraph whose last inputs are what the node captures."""
        graph = Graph(message.name or "subgraph")
        inner = Scope(graph, scope.program, parent=scope, layer=scope.layer)
        self._initializers(inner, message)
        self._count(len(inner.names), message.offset)
        for info in message.input:
            graph.inputs.append(self._input(inner, info))
        own = {name for made in message.node for name in made.output}
        twins: dict[Value, Value] = {}
        for value, name in captured.items():
            hidden = name in inner.names or name in own
            stem = f"{name}/outer" if hidden else name
            twins[value] = Value(graph.fresh_name(stem), value.dtype, value.shape)
            graph.inputs.append(twins[value])
        for name in self.free.of(message):
            bound = scope.find(name)
            if isinstance(bound, Value):
                inner.names[name] = twins[bound]
        self._body(inner, message.node, message.value_info)
        self._outputs(inner, message.output)
        return graph

    def _count(self, more: int, offset: int) -> None:
        """Bound what is made of graphs that functions use again and again."""
        self._made += more
        if self._made > MAX_NODES:
            rule = f"has more than {MAX_NODES:,} nodes once functions are inlined"
            self.fail(f"{rule}; simplify the model", offset)

    def _call(
        self,
        scope: Scope,
        message: NodeMessage,
        function: FunctionMessage,
        names: Mapping[str, str],
    ) -> None:
        """Add the body of a function in place of the node that calls it."""
        key = function_key(function)
        label = f"call {message.name!r} of function {'.'.join(filter(None, key))!r}"
        if len(message.input) > len(function.input) or len(message.output) > len(function.output):
            self.fail(f"{label} has more inputs or outputs than the function", message.offset)
        given = self._resolved(scope, message)
        outside = Scope(scope.graph, Program(self.functions.opsets(function)))
        for default in function.attribute_proto:
            given.setdefault(default.name, Given(default, outside))
        results = {
            inner: names[outer]
            for inner, outer in zip(function.output, message.output, strict=False)
            if outer
        }
        program = Program(self.functions.opsets(function), given, (*scope.program.calls, key))
        layer = layer_of(message.name)
        body = Scope(
            scope.graph,
            program,
            prefix=f"{scope.prefix}{message.name or function.name}/",
            results=results,
            layer=scope.layer if layer is None else layer,
        )
        for formal, actual in zip_longest(function.input, message.input):
            if formal in body.names:
                self.fail(f"{label}: two inputs of it are named {formal!r}", function.offset)
            body.names[formal] = scope.find(actual) if actual else None
        self._body(body, function.node, function.value_info)
        for inner, outer in zip(function.output, message.output, strict=False):
            if inner not in body.names:
                self.fail(f"function {function.name!r} does not make {inner!r}", function.offset)
            if outer:
                scope.names[outer] = self._result(scope, body, inner, names[outer])

    def _result(self, scope: Scope, body: Scope, inner: str, name: str) -> Value | None:
        """Return an output of an inlined function, under the name that it has outside."""
        value = self._operand(body, inner)
        return value if value is None or value.name == name else self._identity(scope, value, name)
