"""Types of a graph's values: what operators infer, and where that is open what the file declares.

Declared shapes of inner values are often stale, for example after somebody changed a batch size:
where both know a dimension the operator is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halfbyte.converters.onnx.contrib import is_contrib
from halfbyte.converters.onnx.messages import Span
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.types import UNTYPED, read_type
from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import element_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.legality import check_form
from halfbyte.ir.ops import OPS, op_key
from halfbyte.ir.ops.spec import UNKNOWN, OpSpec, ValueType

# Contradicted declarations that are named; of more only the number is told.
SHOWN = 3
SHOWN_CHARACTERS = 80
# What an operator's inference may run into when a file's constants make no sense.
BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


def infer_checked(spec: OpSpec, node: Node) -> list[ValueType]:
    """Return the types of a node's outputs.

    Raises:
        GraphError: inputs, attributes or constants break a rule of the operator.
    """
    try:
        return spec.infer(node)
    except BROKEN as error:
        raise GraphError(
            node.label, f"has constants or attributes without sense ({error})"
        ) from error


def merged_dims(found: Dim, declared: Dim) -> Dim:
    """Return a dimension: inferred, or as declared where inference leaves it open."""
    return declared if found == UNKNOWN else found


def disagree(found: Value, declared: ValueType) -> bool:
    """Whether a declared type contradicts the one that a value has; what is open fits all."""
    if None not in (found.dtype, declared.dtype) and found.dtype != declared.dtype:
        return True
    if found.shape is None or declared.shape is None:
        return False
    if len(found.shape) != len(declared.shape):
        return True
    return any(
        isinstance(a, int) and isinstance(b, int) and a != b
        for a, b in zip(found.shape, declared.shape, strict=True)
    )


def shown(dtype: str | None, shape: Sequence[Dim] | None) -> str:
    """Return a type as text."""
    dims = "*" if shape is None else ", ".join(str(dim) for dim in shape)
    return f"{dtype or '?'}[{dims}]"


def merged(found: ValueType, declared: ValueType) -> ValueType:
    """Return the inferred type, completed by the declared one."""
    shape = found.shape
    if shape is None:
        shape = declared.shape if found.dtype in (None, declared.dtype) else None
    elif declared.shape is not None and len(declared.shape) == len(shape):
        shape = tuple(merged_dims(a, b) for a, b in zip(shape, declared.shape, strict=True))
    return ValueType(found.dtype or declared.dtype, shape)


class TypeFiller:
    """Fills in the types of one file's graph. declared: where the file tells a value's type."""

    def __init__(self, buffer: Buffer, declared: Mapping[Value, Span | None]) -> None:
        """Take the file and the places of declared types."""
        self.buffer = buffer
        self.declared = declared

    def fill(self, graph: Graph) -> None:
        """Give every node output, subgraphs included, its type.

        Raises:
            GraphError: a node breaks a rule of its operator.
        """
        for node in graph.nodes:
            for subgraph in graph.subgraphs([node]):
                self._enter(node, subgraph)
                self.fill(subgraph)
            known = op_key(node.op, node.domain) in OPS and not is_contrib(node)
            kinds = infer_checked(check_form(node), node) if known else []
            for index, value in enumerate(node.outputs):
                self._set(value, kinds[index] if index < len(kinds) else UNTYPED)

    def contradictions(self) -> list[str]:
        """Return a sentence about the declared types that the operators contradict, if any do."""
        wrong: list[tuple[Value, ValueType]] = []
        for value, span in self.declared.items():
            if value.shape is not None or value.dtype is not None:
                declared = read_type(self.buffer, span)
                if disagree(value, declared):
                    wrong.append((value, declared))
        if not wrong:
            return []
        named = "; ".join(
            f"{value.name[:SHOWN_CHARACTERS]!r} is declared {shown(kind.dtype, kind.shape)}, "
            f"its node makes {shown(value.dtype, value.shape)}"
            for value, kind in wrong[:SHOWN]
        )
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return [f"types that are declared wrong, what operators make counts: {named}{more}"]

    def _set(self, value: Value, found: ValueType) -> None:
        is_open = found.shape is None or found.dtype is None or UNKNOWN in found.shape
        if is_open and value in self.declared:
            found = merged(found, read_type(self.buffer, self.declared[value]))
        if found.dtype is not None:
            value.dtype = found.dtype
        if found.shape is not None:
            value.shape = found.shape

    def _enter(self, node: Node, subgraph: Graph) -> None:
        """Give a subgraph's captures the types that they have outside."""
        count = node.attributes.get("captures", 0)
        outer = node.inputs[len(node.inputs) - count :]
        for value, source in zip(
            subgraph.inputs[len(subgraph.inputs) - count :], outer, strict=True
        ):
            if source is not None:
                value.dtype, value.shape = source.dtype, source.shape
        if node.op in ("Loop", "Scan"):
            self._carry(node, subgraph, count)

    def _carry(self, node: Node, subgraph: Graph, captures: int) -> None:
        """Give formal inputs without a declared type the element type of what is fed to them."""
        formal = subgraph.inputs[: len(subgraph.inputs) - captures]
        fed = node.inputs[: len(node.inputs) - captures]
        skipped = len(fed) - len(formal)
        for value, source in zip(formal, fed[max(0, skipped) :], strict=False):
            if value.dtype is None and source is not None and source.dtype is not None:
                value.dtype = source.dtype if node.op == "Loop" else element_dtype(source.dtype)
