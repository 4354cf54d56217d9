"""Operators over sequences of tensors: Python lists of arrays at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, element_dtype
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    common_dtype,
    input_at,
    integers,
    ints,
    normal,
    operator,
    required_input,
)

PREFIX = "sequence."


def sequence_of(dtype: str | None) -> ValueType:
    """Return the type of a sequence of tensors of one dtype."""
    return ValueType(None if dtype is None else PREFIX + dtype, None)


def element_of(node: Node, index: int) -> str | None:
    """Return the dtype of the elements of a sequence input.

    Raises:
        GraphError: the input is no sequence.
    """
    dtype = required_input(node, index).dtype
    if dtype is None:
        return None
    if not dtype.startswith(PREFIX):
        raise GraphError(node.label, f"input {index} is {dtype}, a sequence was required")
    return element_dtype(dtype)


def place_of(operand: Any, length: int, *, end: bool = False) -> int:
    """Return a position in a sequence, negative ones counted from the end.

    end: whether the place behind the last element counts.

    Raises:
        IndexError: it is outside.
    """
    place = integers(operand)[0]
    if not -length <= place < length + end:
        raise IndexError(f"position {place} is outside a sequence of {length}")
    return place + length if place < 0 else place


def infer_construct(node: Node) -> list[ValueType]:
    """Infer: a sequence of the inputs' dtype."""
    return [sequence_of(common_dtype(node))]


def evaluate_construct(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return the inputs as a sequence."""
    return [[as_array(v) for v in inputs]]


def infer_empty(node: Node) -> list[ValueType]:
    """Infer: a sequence of the attribute's dtype, float32 if none."""
    given = node.attributes.get("dtype")
    return [sequence_of("float32" if given is None else dtype_name(given))]


def evaluate_empty(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return a sequence of nothing."""
    return [[]]


def infer_at(node: Node) -> list[ValueType]:
    """Infer: the dtype of the elements."""
    return [ValueType(element_of(node, 0), None)]


def evaluate_at(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return one element."""
    return [inputs[0][place_of(inputs[1], len(inputs[0]))]]


def infer_insert(node: Node) -> list[ValueType]:
    """Infer: the same sequence type; an untyped sequence takes the tensor's."""
    element = element_of(node, 0)
    return [sequence_of(element if element is not None else common_dtype(node, [1]))]


def evaluate_insert(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return a sequence with one more element, at the end unless a position is given."""
    held = list(inputs[0])
    given = inputs[2] if len(inputs) > 2 else None
    place = len(held) if given is None else place_of(given, len(held), end=True)
    held.insert(place, as_array(inputs[1]))
    return [held]


def infer_erase(node: Node) -> list[ValueType]:
    """Infer: the same sequence type."""
    return [sequence_of(element_of(node, 0))]


def evaluate_erase(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return a sequence without one element, the last unless a position is given."""
    held = list(inputs[0])
    given = inputs[1] if len(inputs) > 1 else None
    del held[place_of(-1 if given is None else given, len(held))]
    return [held]


def infer_length(node: Node) -> list[ValueType]:
    """Infer: one int64."""
    element_of(node, 0)
    return [ValueType("int64", ())]


def evaluate_length(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return the number of elements."""
    return [np.asarray(len(inputs[0]), np.int64)]


def evaluate_concat(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Join the elements along an axis that they have, or a new one."""
    join = np.stack if attributes["new_axis"] else np.concatenate
    return [join(inputs[0], axis=attributes["axis"])]


def infer_split_to_sequence(node: Node) -> list[ValueType]:
    """Infer: a sequence of the input's dtype."""
    return [sequence_of(common_dtype(node, [0]))]


def evaluate_split_to_sequence(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Cut along an axis into pieces of one length, of given lengths, or of length one."""
    data, axis = as_array(inputs[0]), attributes["axis"]
    total, given = data.shape[axis], inputs[1] if len(inputs) > 1 else None
    if given is None:
        pieces = np.split(data, total, axis) if total else []
        return [pieces if attributes["keepdims"] else [np.squeeze(p, axis) for p in pieces]]
    lengths = integers(given)
    if np.ndim(given) == 0:
        return [np.split(data, range(lengths[0], total, lengths[0]), axis)]
    if sum(lengths) != total:
        raise ValueError(f"lengths {lengths} do not add up to {total}")
    return [np.split(data, np.cumsum(lengths)[:-1], axis)]


def infer_map(node: Node) -> list[ValueType]:
    """Infer: sequences of what the body yields for one element of each sequence."""
    from halfbyte.ir.ops.subgraph import body_types

    kinds: list[ValueType] = []
    formal = len(node.inputs) - node.attributes.get("captures", 0)
    for index in range(len(node.inputs)):
        value = input_at(node, index)
        dtype, shape = (None, None) if value is None else (value.dtype, value.shape)
        if index < formal and dtype is not None and dtype.startswith(PREFIX):
            dtype, shape = element_dtype(dtype), None
        kinds.append(ValueType(dtype, shape))
    return [sequence_of(kind.dtype) for kind in body_types(node.attributes["body"], kinds)]


def evaluate_map(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Run the body for each element; sequences give theirs, tensors are the same for all."""
    assert context.run is not None
    body = attributes["body"]
    formal = len(inputs) - attributes["captures"]
    results: list[list[Any]] = [[] for _ in range(context.outputs)]
    for place in range(len(inputs[0])):
        picked = [v[place] if isinstance(v, list) else v for v in inputs[:formal]]
        found = context.run(body, [*picked, *inputs[formal:]])
        for held, value in zip(results, found, strict=False):
            held.append(value)
    return list(results)


def pair(*more: Any, **attributes: Any) -> Any:
    """Return a maker of one case over a sequence of two."""
    first: Any = [normal(60, 2, 3), normal(61, 2, 3)]
    return lambda: [Case("pair", [first, *more], attributes)]


SPECS: tuple[OpSpec, ...] = (
    operator(
        "SequenceConstruct",
        (11,),
        "inputs* -> output_sequence",
        infer=infer_construct,
        evaluate=evaluate_construct,
        cases=lambda: [Case("two", [normal(60, 2, 3), normal(61, 1)])],
    ),
    operator(
        "SequenceEmpty",
        (11,),
        "-> output",
        infer=infer_empty,
        evaluate=evaluate_empty,
        attributes={"dtype": Attribute("dtype")},
        cases=lambda: [Case("int64", [], {"dtype": "int64"})],
    ),
    operator(
        "SequenceAt",
        (11,),
        "input_sequence position -> tensor",
        infer=infer_at,
        evaluate=evaluate_at,
        cases=pair(ints(-1)[0]),
    ),
    operator(
        "SequenceInsert",
        (11,),
        "input_sequence tensor position? -> output_sequence",
        infer=infer_insert,
        evaluate=evaluate_insert,
        cases=pair(normal(62, 4), ints(0)[0]),
    ),
    operator(
        "SequenceErase",
        (11,),
        "input_sequence position? -> output_sequence",
        infer=infer_erase,
        evaluate=evaluate_erase,
        cases=pair(),
    ),
    operator(
        "SequenceLength",
        (11,),
        "input_sequence -> length",
        infer=infer_length,
        evaluate=evaluate_length,
        cases=pair(),
    ),
    operator(
        "ConcatFromSequence",
        (11,),
        "input_sequence -> concat_result",
        infer=infer_at,
        evaluate=evaluate_concat,
        attributes={"axis": Attribute("int", required=True), "new_axis": Attribute("int", 0)},
        cases=pair(axis=1),
    ),
    operator(
        "SplitToSequence",
        (11, 24),
        "input split? -> output_sequence",
        infer=infer_split_to_sequence,
        evaluate=evaluate_split_to_sequence,
        attributes={"axis": Attribute("int", 0), "keepdims": Attribute("int", 1)},
        cases=lambda: [
            Case("pieces", [normal(63, 5, 2), np.asarray(2)]),
            Case("lengths", [normal(63, 5, 2), ints(1, 4)]),
            Case("rows", [normal(63, 5, 2)], {"keepdims": 0}),
        ],
    ),
    OpSpec(
        "SequenceMap",
        (17,),
        ("input_sequence", "additional_inputs*"),
        ("out_sequence*",),
        infer=infer_map,
        evaluate=evaluate_map,
        attributes={"body": Attribute("graph", required=True), "captures": Attribute("int", 0)},
        cases=lambda: map_cases(),
    ),
)


def map_cases() -> list[Case]:
    """Return a body that adds a tensor to each element."""
    from halfbyte.ir.graph import Graph

    body = Graph("body")
    x, y = body.add_input("x", "float32", (UNKNOWN, 3)), body.add_input("y", "float32", (3,))
    body.outputs.append(body.add("Add", [x, y], since_version=14))
    held: Any = [normal(60, 2, 3), normal(61, 1, 3)]
    return [Case("sum", [held, normal(64, 3)], {"body": body})]
