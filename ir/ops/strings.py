"""Operators on strings; arrays of them hold Python objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.elementwise import infer_broadcast
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    required_input,
)


def text(*values: str) -> Array:
    """Return an array of strings."""
    return np.asarray(values, object)


def evaluate_concat(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Join strings element by element."""
    left, right = (np.asarray(v, object) for v in inputs)
    return [np.asarray(left + right, object)]


def evaluate_split(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Split strings; shorter lists are filled with empty strings."""
    data = np.asarray(inputs[0], object)
    separator, most = attributes["delimiter"] or None, attributes["maxsplit"]
    lists = [str(v).split(separator, -1 if most is None else most) for v in data.reshape(-1)]
    counts = np.asarray([len(parts) for parts in lists], np.int64)
    width = int(counts.max(initial=0))
    table = np.full((len(lists), width), "", object)
    for row, parts in enumerate(lists):
        table[row, : len(parts)] = parts
    return [table.reshape(*data.shape, width), counts.reshape(data.shape)]


def infer_split(node: Node) -> list[ValueType]:
    """Infer: one more dimension, and how many parts each string has."""
    shape = required_input(node, 0).shape
    split = None if shape is None else (*shape, UNKNOWN)
    return [ValueType("string", split), ValueType("int64", shape)][: len(node.outputs)]


def evaluate_normalizer(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Drop stop words and change case, in a vector or a single row."""
    data = np.asarray(inputs[0], object)
    words = [str(v) for v in data.reshape(-1)]
    stops = set(attributes["stopwords"] or ())
    if stops and attributes["is_case_sensitive"]:
        words = [word for word in words if word not in stops]
    elif stops:
        folded = {stop.lower() for stop in stops}
        words = [word for word in words if word.lower() not in folded]
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(attributes["case_change_action"])
    if change is not None:
        words = [change(word) for word in words]
    result = np.asarray(words or [""], object)
    return [result.reshape(1, -1) if data.ndim == 2 else result]


def infer_normalizer(node: Node) -> list[ValueType]:
    """Infer: a vector or a row of unknown length."""
    shape = required_input(node, 0).shape
    if shape is None:
        return [ValueType("string", None)]
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] not in (1, UNKNOWN)):
        raise GraphError(node.label, f"words of shape {list(shape)}; give [C] or [1, C]")
    lead: tuple[Dim, ...] = (1,) if len(shape) == 2 else ()
    same = not node.attributes.get("stopwords") and shape[-1] != 0
    return [ValueType("string", (*lead, shape[-1] if same else UNKNOWN))]


def evaluate_match(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Whether a pattern matches all of a string."""
    data = np.asarray(inputs[0], object)
    pattern = re.compile(attributes["pattern"] or "")
    found = [pattern.fullmatch(str(v)) is not None for v in data.reshape(-1)]
    return [np.asarray(found, np.bool_).reshape(data.shape)]


def infer_match(node: Node) -> list[ValueType]:
    """Infer: bool, of the input's shape; the pattern must be one."""
    try:
        re.compile(node.attributes.get("pattern") or "")
    except re.error as error:
        raise GraphError(node.label, f"pattern: {error}; give a regular expression") from error
    return [ValueType("bool", required_input(node, 0).shape)]


WORDS = {
    "case_change_action": Attribute("string", "NONE"),
    "is_case_sensitive": Attribute("int", 0),
    "stopwords": Attribute("strings"),
    "locale": Attribute("string"),
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "StringConcat",
        (20,),
        ("X", "Y"),
        ("Z",),
        infer=infer_broadcast,
        evaluate=evaluate_concat,
        cases=lambda: [Case("row", [text("a", "b"), text("c")])],
    ),
    OpSpec(
        "StringSplit",
        (20,),
        ("X",),
        ("Y", "Z"),
        infer=infer_split,
        evaluate=evaluate_split,
        attributes={"delimiter": Attribute("string"), "maxsplit": Attribute("int")},
        cases=lambda: [
            Case("blanks", [text(" a  b ", "", "c")], outputs=2),
            Case("comma", [text("a,,b", "c")], {"delimiter": ",", "maxsplit": 1}, outputs=2),
        ],
    ),
    OpSpec(
        "StringNormalizer",
        (10,),
        ("X",),
        ("Y",),
        infer=infer_normalizer,
        evaluate=evaluate_normalizer,
        attributes=WORDS,
        cases=lambda: [
            Case("upper", [text("Monday", "day")], {"case_change_action": "UPPER"}),
            Case("stops", [text("Monday", "day")], {"stopwords": ["monday"]}),
        ],
    ),
    OpSpec(
        "RegexFullMatch",
        (20,),
        ("X",),
        ("Y",),
        infer=infer_match,
        evaluate=evaluate_match,
        attributes={"pattern": Attribute("string")},
        cases=lambda: [Case("digits", [text("12", "1a")], {"pattern": r"\d+"})],
    ),
)
