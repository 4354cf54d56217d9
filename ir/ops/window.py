"""Windows of signal processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_name, numpy_dtype
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    known_ints,
    required_input,
)
from halfbyte.ir.ops.wide import quiet

HANN = (0.5, 0.5)
HAMMING = (25 / 46, 21 / 46)
BLACKMAN = (0.42, 0.5, 0.08)


def window(size: int, periodic: bool, weights: Sequence[float]) -> Array:
    """Return the sum of cosines with alternating signs, in float64."""
    steps = size if periodic else size - 1
    phase = 2 * np.pi * np.arange(size) / max(steps, 1)
    terms = [(-1) ** k * weight * np.cos(k * phase) for k, weight in enumerate(weights)]
    return np.asarray(sum(terms))


def infer_window(node: Node) -> list[ValueType]:
    """Infer: as long as the constant input says."""
    size = known_ints(required_input(node, 0))
    to = dtype_name(node.attributes.get("output_datatype", 1))
    return [ValueType(to, (size[0] if size else UNKNOWN,))]


def window_spec(op: str, weights: Sequence[float]) -> OpSpec:
    """Return the spec of one window."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        size = int(np.asarray(inputs[0]).reshape(()))
        values = window(size, bool(attributes["periodic"]), weights)
        return [values.astype(numpy_dtype(dtype_name(attributes["output_datatype"])))]

    return OpSpec(
        op,
        (17,),
        ("size",),
        ("output",),
        infer=infer_window,
        evaluate=evaluate,
        attributes={"periodic": Attribute("int", 1), "output_datatype": Attribute("dtype", 1)},
        cases=lambda: [
            Case("periodic", [np.asarray(10, np.int64)]),
            Case("symmetric", [np.asarray(7, np.int64)], {"periodic": 0}),
        ],
    )


SPECS: tuple[OpSpec, ...] = (
    window_spec("HannWindow", HANN),
    window_spec("HammingWindow", HAMMING),
    window_spec("BlackmanWindow", BLACKMAN),
)
