"""What the table knows of an operator: signature, type inference, meaning, cases.

`evaluate` is the reference meaning in numpy: inputs are arrays, or a still encoded `Tensor` where
the spec says so; it returns new arrays. Cases carry inputs for conformance tests on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.tensor import Tensor

Array = NDArray[Any]
Operand = Array | Tensor | None
UNKNOWN: Dim = "?"


class ValueType(NamedTuple):
    """dtype name and shape of a value; None where unknown, `?` for one unknown dimension."""

    dtype: str | None
    shape: tuple[Dim, ...] | None


class Cache(Protocol):
    """The states of a session as an operator sees them."""

    @property
    def position(self) -> int:
        """Return how many positions were held before this run."""

    def extend(self, state: str, values: Array) -> Array:
        """Write values [batch, heads, new, d] after the held positions; return all of them."""


@dataclass(frozen=True)
class Context:
    """What an evaluation may use beside its inputs.

    outputs: how many outputs the node has. run: evaluates a subgraph on its inputs in order.
    """

    cache: Cache | None = None
    outputs: int = 1
    run: Callable[[Graph, Sequence[Any]], list[Any]] | None = None


@dataclass(frozen=True)
class Attribute:
    """Kind (`int`, `float`, `string`, `dtype`, `tensor`, `graph`; plural: a list) and default."""

    kind: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Case:
    """Inputs for one conformance test. `expected` None: the reference's own result is the truth."""

    name: str
    inputs: Sequence[Operand]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    expected: Sequence[Array] | None = None
    states: Mapping[str, Array] = field(default_factory=dict)
    outputs: int = 1


Infer = Callable[[Node], list[ValueType]]
Evaluate = Callable[[Sequence[Any], Mapping[str, Any], Context], list[Array]]


@dataclass(frozen=True)
class OpSpec:
    """One operator, in the form that it has in `versions`.

    Input names end in `?` when optional, in `*` when repeated (last only). versions: the
    since_versions whose form and meaning this is; an operator that changed has several specs.
    upgrade: rewrites a node of this form as the next one, in place in its graph, and returns
    whether it could; None for the newest form. encoded: inputs that may come as an encoded Tensor,
    of rank encoded_rank.
    view: the first output is the first input in another shape.
    """

    op: str
    versions: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    infer: Infer
    evaluate: Evaluate
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    domain: str = ""
    encoded: frozenset[int] = frozenset()
    encoded_rank: int = 2
    view: bool = False
    cases: Callable[[], list[Case]] = list
    upgrade: Callable[[Graph, Node], bool] | None = None

    @property
    def key(self) -> str:
        """Return the name in OPS: `Add`, `halfbyte.Linear`."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    def with_defaults(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes with defaults filled in."""
        return {name: a.default for name, a in self.attributes.items()} | dict(attributes)


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """Return an attribute of a node or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found


def input_at(node: Node, index: int) -> Value | None:
    """Return an input, None when omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


def required_input(node: Node, index: int) -> Value:
    """Return an input that must be there.

    Raises:
        GraphError: it is missing.
    """
    value = input_at(node, index)
    if value is None:
        raise GraphError(node.label, f"input {index} is missing; give it")
    return value


def common_dtype(node: Node, indexes: Sequence[int] | None = None) -> str | None:
    """Return the dtype that the inputs share; floating constants adapt to the others.

    A stored weight may lie in any floating encoding: it is read in the dtype of the values it
    meets, or float32 when only constants meet.

    Raises:
        GraphError: two inputs disagree.
    """
    every = range(len(node.inputs)) if indexes is None else indexes
    values = [v for v in (input_at(node, i) for i in every) if v is not None]
    found: str | None = None
    for value in values:
        if value.dtype is None or adapts(value):
            continue
        if found is not None and value.dtype != found:
            raise GraphError(
                node.label, f"inputs of {found} and {value.dtype} meet; give one dtype or a Cast"
            )
        found = value.dtype
    if found is None and values and all(adapts(v) for v in values):
        return "float64" if all(v.dtype == "float64" for v in values) else "float32"
    return found


def adapts(value: Value) -> bool:
    """Whether a value is a stored floating constant, read in the dtype its reader computes in."""
    return value.constant is not None and not value.fixed and value.dtype in FLOATING


def known_array(value: Value | None, limit: int = 1 << 16) -> Array | None:
    """Return the values of a small constant, or None."""
    if value is None or value.constant is None or value.constant.size > limit:
        return None
    return value.constant.numpy()


def known_ints(value: Value | None) -> list[int] | None:
    """Return the integers of a small constant, or None."""
    array = known_array(value)
    return None if array is None else [int(v) for v in np.asarray(array).reshape(-1)]


def integers(operand: Any) -> list[int]:
    """Return an integer operand as list."""
    return [int(v) for v in as_array(operand).reshape(-1).tolist()]


def axis_of(node: Node, axis: int, rank: int) -> int:
    """Return a non-negative axis.

    Raises:
        GraphError: it is out of range.
    """
    if not -rank <= axis < max(rank, 1):
        raise GraphError(
            node.label, f"axis {axis} is outside rank {rank}; give -{rank}..{rank - 1}"
        )
    return axis % max(rank, 1)


def broadcast_dim(node: Node, left: Dim, right: Dim) -> Dim:
    """Return the broadcast of two dimensions.

    Raises:
        GraphError: they are two different integers, neither 1.
    """
    if left == right or right == 1:
        return left
    if left == 1:
        return right
    if isinstance(left, int) and isinstance(right, int):
        raise GraphError(
            node.label, f"dimensions {left} and {right} do not broadcast; make them equal or 1"
        )
    if isinstance(left, int):
        return left
    return right if isinstance(right, int) else UNKNOWN


def broadcast(node: Node, shapes: Sequence[tuple[Dim, ...] | None]) -> tuple[Dim, ...] | None:
    """Return the broadcast shape, None when one shape is unknown."""
    result: tuple[Dim, ...] = ()
    for shape in shapes:
        if shape is None:
            return None
        rank = max(len(result), len(shape))
        left = (1,) * (rank - len(result)) + result
        right = (1,) * (rank - len(shape)) + shape
        result = tuple(broadcast_dim(node, a, b) for a, b in zip(left, right, strict=True))
    return result


def same_as_first(node: Node) -> list[ValueType]:
    """Infer: one output like the first input."""
    value = required_input(node, 0)
    return [ValueType(common_dtype(node, [0]), value.shape)]


def as_array(operand: Operand) -> Array:
    """Return an operand as array, decoding a Tensor whole."""
    if isinstance(operand, Tensor):
        return operand.numpy()
    return np.asarray(operand)


def float_rows(operand: Any, start: int, stop: int) -> NDArray[np.float32]:
    """Return rows [start, stop) of a weight [rows, columns] as float32, decoding only them."""
    if isinstance(operand, Tensor):
        return operand.float32(start, stop)
    return np.asarray(operand[start:stop], dtype=np.float32)


def generator(seed: int) -> np.random.Generator:
    """Return the generator that cases draw their inputs from."""
    return np.random.Generator(np.random.PCG64(seed))


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Return standard normal float32 values."""
    return generator(seed).standard_normal(shape, dtype=np.float32)


def ints(*values: int) -> Array:
    """Return an int64 vector."""
    return np.asarray(values, dtype=np.int64)


def one_case(name: str, *inputs: Any, **attributes: Any) -> Callable[[], list[Case]]:
    """Return a maker of one case."""
    return lambda: [Case(name, list(inputs), attributes)]


def operator(op: str, versions: tuple[int, ...], names: str, **parts: Any) -> OpSpec:
    """Return a spec whose inputs and outputs stand in one line: `data shape -> reshaped`."""
    inputs, _, outputs = names.partition("->")
    return OpSpec(op, versions, tuple(inputs.split()), tuple(outputs.split()), **parts)
