"""Graphs as stable text, and back.

One line per input, state, constant, node and output:

    graph main opset 24 {
      input %ids: int64[batch, sequence]
      state key_cache.0: float32[batch, 2, capacity, 16] axis 2 layer 0
      constant %w: float32[8, 4] encoding Q4_0 role output_head
      %y: float32[batch, sequence, 8] = halfbyte.Linear@1(%x, %w, _) {"a": 1} layer 0
      output %y
    }

Names other than plain words are JSON strings; `_` is an omitted input, `?` an unknown dtype or
dimension, `[*]` an unknown shape. Attributes are one JSON object with sorted keys, where arrays are
{"$array": [dtype, shape, base64]}, bytes {"$bytes": base64} and subgraphs {"$graph": text}. Weights
are not part of the text; `print_whole` adds the other constants' parts: data {"data": array}.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.dtypes import DTYPES, is_dtype, numpy_dtype
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.graph import Dim, Graph, Node, Origin, State, Value
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import ArrayPart, Tensor

WORD = re.compile(r"[A-Za-z0-9_?][A-Za-z0-9_./+\-]*")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+\-]*")
INTEGER = re.compile(r"-?\d+")
# A word that could be read as something else is quoted.
RESERVED = frozenset({"_", "?"})


Weights = Mapping[str, Tensor]


def print_graph(graph: Graph) -> str:
    """Return the graph as text; equal graphs give equal text."""
    return _print(graph, None)


def print_whole(graph: Graph, weights: Weights) -> str:
    """Return the graph as text with the values of all constants that are not among `weights`."""
    return _print(graph, weights)


def _print(graph: Graph, weights: Weights | None) -> str:
    lines = [f"graph {_name(graph.name)} opset {graph.opset} {{"]
    lines += [f"  input {_typed(value)}" for value in graph.inputs]
    lines += [f"  state {_state(state)}" for state in graph.states.values()]
    for name, tensor in graph.constants.items():
        lines.append(f"  constant {_constant(graph.constant_value(name), tensor, weights)}")
    lines += [f"  {_node(node, weights)}" for node in graph.nodes]
    lines += [f"  output %{_name(value.name)}" for value in graph.outputs]
    return "\n".join([*lines, "}"]) + "\n"


def _name(name: str) -> str:
    plain = PLAIN.fullmatch(name) and name not in RESERVED and not INTEGER.fullmatch(name)
    return name if plain else json.dumps(name)


def _dims(shape: tuple[Dim, ...] | None) -> str:
    if shape is None:
        return "[*]"
    return "[" + ", ".join(d if d == "?" else _dim(d) for d in shape) + "]"


def _dim(dim: Dim) -> str:
    return _name(dim) if isinstance(dim, str) else str(dim)


def _typed(value: Value) -> str:
    return f"%{_name(value.name)}: {value.dtype or '?'}{_dims(value.shape)}"


def _state(state: State) -> str:
    text = f"{_name(state.name)}: {state.dtype}{_dims(state.shape)} axis {state.axis}"
    return text + _option("window", state.window) + _option("layer", state.layer)


def _option(word: str, value: Any) -> str:
    return "" if value is None else f" {word} {value}"


def _constant(value: Value, tensor: Tensor, weights: Weights | None) -> str:
    text = f"{_typed(value)} encoding {_name(tensor.encoding.name)}"
    if tensor.name != value.name:
        text += f" tensor {_name(tensor.name)}"
    text += _option("role", tensor.role) + _option("layer", tensor.layer)
    text += f" kind {_name(tensor.kind)}" if tensor.kind != "weight" else ""
    text += " fixed" if value.fixed else ""
    if weights is not None and weights.get(tensor.name) is not tensor:
        parts = {name: _attribute(part.read()) for name, part in sorted(tensor.parts.items())}
        text += " data " + json.dumps(parts)
    return text


def _node(node: Node, weights: Weights | None) -> str:
    outputs = ", ".join(_typed(value) for value in node.outputs)
    inputs = ", ".join("_" if v is None else f"%{_name(v.name)}" for v in node.inputs)
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    text = f"{outputs} = {_name(op)}@{node.since_version}({inputs})"
    if node.attributes:
        plain = {name: _attribute(held, weights) for name, held in sorted(node.attributes.items())}
        text += " " + json.dumps(plain)
    text += _option("layer", node.layer)
    if node.origin is not None:
        origin = [node.origin.file, node.origin.name, node.origin.offset]
        text += " origin " + json.dumps(origin)
    return text


def _attribute(value: Any, weights: Weights | None = None) -> Any:
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        whole = np.asarray(value, order="C")
        if whole.dtype == object:
            return {"$array": ["string", list(whole.shape), whole.ravel().tolist()]}
        return {"$array": [whole.dtype.name, list(whole.shape), _base64(whole.tobytes())]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Graph):
        return {"$graph": _print(value, weights)}
    if isinstance(value, bytes):
        return {"$bytes": _base64(value)}
    return [_attribute(v, weights) for v in value] if isinstance(value, (list, tuple)) else value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def parse(text: str, constants: Mapping[str, Tensor] | None = None) -> Graph:
    """Return the graph that `text` describes.

    constants: tensors by their own name or the value's, for subgraphs too; one that is missing and
    not in the text has no storage.

    Raises:
        GraphError: a line breaks the grammar or a constant does not fit; names the line.
    """
    return _Parser(text, constants or {}).graph()


class _Parser:
    """Reads line by line; `at` is the place in the line."""

    def __init__(self, text: str, constants: Mapping[str, Tensor]) -> None:
        self.lines = text.split("\n")
        self.constants = constants
        self.number = 0
        self.line = ""
        self.at = 0
        self.values: dict[str, Value] = {}
        self.result = Graph()

    def fail(self, rule: str) -> NoReturn:
        raise GraphError(f"line {self.number}", rule)

    def next_line(self) -> bool:
        while self.number < len(self.lines):
            self.line, self.at = self.lines[self.number].strip(), 0
            self.number += 1
            if self.line:
                return True
        return False

    def graph(self) -> Graph:
        try:
            return self._graph()
        except GraphError:
            raise
        except (HalfbyteError, ValueError, RecursionError, TypeError) as error:
            raise GraphError(f"line {self.number}", str(error) or "is nested too deep") from error

    def _graph(self) -> Graph:
        if not self.next_line():
            self.fail("the text is empty, a graph was required")
        self.expect("graph")
        self.result.name = self.name()
        self.expect("opset")
        self.result.opset = self.integer()
        self.expect("{")
        self.end()
        kinds = {
            "input ": self.input_line,
            "state ": self.state_line,
            "constant ": self.constant_line,
            "output ": self.output_line,
        }
        while self.next_line():
            if self.line == "}":
                if self.next_line():
                    self.fail("text follows the closing brace; remove it")
                return self.result
            read = next((f for word, f in kinds.items() if self.line.startswith(word)), None)
            if read is None:
                self.node_line()
            else:
                self.at = self.line.index(" ")
                read()
            self.end()
        self.fail("the closing brace is missing; add '}'")

    def skip(self) -> None:
        while self.at < len(self.line) and self.line[self.at] == " ":
            self.at += 1

    def accept(self, token: str) -> bool:
        self.skip()
        if not self.line.startswith(token, self.at):
            return False
        after = self.at + len(token)
        if token.isalpha() and WORD.match(self.line, after):
            return False
        self.at = after
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            found = self.line[self.at : self.at + 20] or "the end of the line"
            self.fail(f"found {found!r}, {token!r} was required")

    def end(self) -> None:
        self.skip()
        if self.at != len(self.line):
            self.fail(f"{self.line[self.at : self.at + 20]!r} follows the statement; remove it")

    def name(self) -> str:
        self.skip()
        if self.line.startswith('"', self.at):
            found = self.json()
            if not isinstance(found, str):
                self.fail("a name was required")
            return found
        match = WORD.match(self.line, self.at)
        if match is None:
            self.fail(f"found {self.line[self.at : self.at + 20]!r}, a name was required")
        self.at = match.end()
        return match.group()

    def integer(self) -> int:
        self.skip()
        match = INTEGER.match(self.line, self.at)
        if match is None or len(match.group()) > 20:
            self.fail(f"found {self.line[self.at : self.at + 20]!r}, an integer was required")
        self.at = match.end()
        return int(match.group())

    def json(self) -> Any:
        self.skip()
        found, self.at = json.JSONDecoder().raw_decode(self.line, self.at)
        return found

    def dims(self) -> tuple[Dim, ...] | None:
        self.expect("[")
        if self.accept("*"):
            self.expect("]")
            return None
        found: list[Dim] = []
        while not self.accept("]"):
            if found:
                self.expect(",")
            self.skip()
            number = INTEGER.match(self.line, self.at)
            found.append(self.integer() if number else self.name())
            if isinstance(found[-1], int) and found[-1] < 0:
                self.fail(f"dimension {found[-1]}, zero or more was required")
        return tuple(found)

    def dtype(self) -> str | None:
        found = self.name()
        if found != "?" and not is_dtype(found):
            self.fail(f"dtype {found!r} is unknown; use a numpy name")
        return None if found == "?" else found

    def typed(self) -> Value:
        self.expect("%")
        name = self.name()
        self.expect(":")
        dtype = self.dtype()
        return Value(name, dtype, self.dims())

    def define(self, value: Value) -> Value:
        if value.name in self.values:
            self.fail(f"value {value.name!r} is defined twice; rename one")
        self.values[value.name] = value
        self.result.fresh_name(value.name)
        return value

    def reference(self) -> Value:
        self.expect("%")
        name = self.name()
        if name not in self.values:
            self.fail(f"value {name!r} is read before it is defined")
        return self.values[name]

    def optional_integer(self, word: str) -> int | None:
        return self.integer() if self.accept(word) else None

    def input_line(self) -> None:
        self.result.inputs.append(self.define(self.typed()))

    def output_line(self) -> None:
        self.result.outputs.append(self.reference())

    def state_line(self) -> None:
        name = self.name()
        self.expect(":")
        dtype, shape = self.dtype(), self.dims()
        if dtype is None or shape is None or name in self.result.states:
            self.fail(f"state {name!r} needs a name of its own, a dtype and a shape")
        self.expect("axis")
        axis = self.integer()
        window, layer = self.optional_integer("window"), self.optional_integer("layer")
        self.result.add_state(State(name, dtype, shape, axis, window, layer))

    def constant_line(self) -> None:
        value = self.define(self.typed())
        self.expect("encoding")
        encoding = encoding_from_name(self.name())
        tensor_name = self.name() if self.accept("tensor") else value.name
        role = Role(self.name()) if self.accept("role") else None
        layer = self.optional_integer("layer")
        kind = self.name() if self.accept("kind") else "weight"
        value.fixed = self.accept("fixed")
        shape = tuple(d for d in value.shape or () if isinstance(d, int))
        if value.shape is None or len(shape) != len(value.shape):
            self.fail(f"constant {value.name!r} needs a shape of integers")
        stored = self.parts() if self.accept("data") else None
        tensor = self.constants.get(tensor_name, self.constants.get(value.name))
        if tensor is None or stored is not None:
            tensor = Tensor(tensor_name, shape, encoding, stored or {}, role, layer, kind)
            self.require_parts(tensor)
        elif tuple(tensor.shape) != shape or tensor.encoding.name != encoding.name:
            self.fail(
                f"constant {value.name!r} is {tensor.encoding.name}{list(tensor.shape)}, "
                f"{encoding.name}{list(shape)} was required"
            )
        value.constant = tensor
        self.result._constants[value.name] = value

    def parts(self) -> dict[str, ArrayPart]:
        raw = self.json()
        arrays = {name: self.attribute(value) for name, value in raw.items()}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            self.fail("data of a constant must be arrays by name")
        return {name: ArrayPart(array) for name, array in arrays.items()}

    def require_parts(self, tensor: Tensor) -> None:
        specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
        found = {name: (part.dtype, part.shape) for name, part in tensor.parts.items()}
        if found and found != {name: (spec.dtype, spec.shape) for name, spec in specs.items()}:
            self.fail(f"data of constant {tensor.name!r} does not fit {tensor.encoding}")

    def node_line(self) -> None:
        outputs: list[Value] = []
        while not self.accept("="):
            if outputs:
                self.expect(",")
            outputs.append(self.typed())
        domain, _, op = self.name().rpartition(".")
        self.expect("@")
        version = self.integer()
        inputs = self.arguments()
        self.skip()
        attributes = self.attributes() if self.line.startswith("{", self.at) else {}
        layer = self.optional_integer("layer")
        origin = self.origin() if self.accept("origin") else None
        for value in outputs:
            self.define(value)
        self.result.insert(Node(op, inputs, outputs, attributes, domain, version, layer, origin))

    def arguments(self) -> list[Value | None]:
        self.expect("(")
        found: list[Value | None] = []
        while not self.accept(")"):
            if found:
                self.expect(",")
            self.skip()
            found.append(None if self.accept("_") else self.reference())
        return found

    def attributes(self) -> dict[str, Any]:
        raw = self.json()
        return {name: self.attribute(value) for name, value in raw.items()}

    def attribute(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.attribute(v) for v in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"$array"}:
            return self.array(value["$array"])
        if set(value) == {"$bytes"}:
            return self.binary(value["$bytes"])
        if set(value) == {"$graph"} and isinstance(value["$graph"], str):
            return parse(value["$graph"], self.constants)
        self.fail("an attribute is a JSON object of no known kind")

    def binary(self, text: Any) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError):
            self.fail("an attribute holds broken base64")

    def array(self, fields: Any) -> Any:
        if not isinstance(fields, list) or len(fields) != 3 or fields[0] not in DTYPES:
            self.fail("an array attribute must be [dtype, shape, base64]")
        dtype, shape = numpy_dtype(fields[0]), fields[1]
        if not isinstance(shape, list) or not all(isinstance(d, int) and d >= 0 for d in shape):
            self.fail("the shape of an array attribute must be a list of integers")
        if fields[0] != "string":
            return np.frombuffer(self.binary(fields[2]), dtype).reshape(shape).copy()
        strings = fields[2]
        if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
            self.fail("an array of strings must hold a list of them")
        found = np.empty(len(strings), object)
        found[:] = strings
        return found.reshape(shape)

    def origin(self) -> Origin:
        fields = self.json()
        if not isinstance(fields, list) or len(fields) != 3:
            self.fail("an origin must be [file, name, offset]")
        file, name, offset = fields
        if not isinstance(file, str) or not isinstance(name, str):
            self.fail("file and name of an origin must be strings")
        return Origin(file, name, offset if isinstance(offset, int) else None)
