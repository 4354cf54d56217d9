"""Linear layers of which every row chooses its own: the experts of a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.matmul import DECODE_BYTES, same_length
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    float_rows,
    generator,
    normal,
    required_input,
)
from halfbyte.ir.tensor import Tensor


def infer_expert_linear(node: Node) -> list[ValueType]:
    """Infer: the chosen experts' shape with the rows of one expert behind it."""
    data, weight, chosen = (required_input(node, i) for i in range(3))
    if weight.shape is not None and len(weight.shape) != 3:
        rule = f"weight has shape {list(weight.shape)}, [experts, out, in] required"
        raise GraphError(node.label, rule)
    if chosen.dtype not in (None, "int64"):
        raise GraphError(node.label, f"experts are chosen by {chosen.dtype}, int64 required")
    if data.shape is not None and weight.shape is not None:
        same_length(node, data.shape[-1], weight.shape[2])
    if chosen.shape is None:
        return [ValueType(common_dtype(node, [0]), None)]
    if data.shape is not None and len(data.shape) - len(chosen.shape) not in (0, 1):
        rule = f"x {list(data.shape)} does not fit experts {list(chosen.shape)}"
        raise GraphError(node.label, f"{rule}; give x [..., in] or [..., used, in]")
    out = UNKNOWN if weight.shape is None else weight.shape[1]
    return [ValueType(common_dtype(node, [0]), (*chosen.shape, out))]


def choices(x: Array, chosen: NDArray[np.int64], experts: int) -> tuple[Array, Array]:
    """Return rows of x [rows, in] and the row and expert of every choice, [rows, used] each.

    x: [..., in], each row sent to all its experts, or [..., used, in], one row for each expert.

    Raises:
        HalfbyteError: an expert's number is outside the weight.
    """
    if chosen.size and (chosen.min() < 0 or chosen.max() >= experts):
        raise HalfbyteError(f"ExpertLinear: experts are 0 to {experts - 1}; correct the choice")
    used = chosen.shape[-1]
    rows = np.arange(chosen.size, dtype=np.int64)
    return x.reshape(-1, x.shape[-1]), rows if x.ndim > chosen.ndim else rows // max(1, used)


def evaluate_expert_linear(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return each row times the transposed matrices of its experts, expert after expert."""
    data, weight, chosen = np.asarray(inputs[0]), inputs[1], np.asarray(inputs[2])
    experts, out, columns = weight.shape
    flat, rows = choices(data, chosen, experts)
    stored = weight if isinstance(weight, Tensor) else np.asarray(weight).reshape(-1, columns)
    result = np.empty((chosen.size, out), np.float64)
    numbers = chosen.reshape(-1)
    step = max(1, DECODE_BYTES // (8 * max(1, columns)))
    for expert in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == expert)
        sent = flat[rows[places]].astype(np.float64)
        for start in range(0, out, step):
            stop = min(start + step, out)
            part = float_rows(stored, expert * out + start, expert * out + stop)
            result[places, start:stop] = sent @ part.astype(np.float64).T
    return [result.astype(data.dtype).reshape(*chosen.shape, out)]


def _chosen(seed: int, experts: int, *shape: int) -> NDArray[np.int64]:
    """Return different experts along the last axis."""
    order = generator(seed).random((*shape[:-1], experts)).argsort(axis=-1)
    return np.ascontiguousarray(order[..., : shape[-1]], np.int64)


def expert_cases() -> list[Case]:
    """Return one row and many, rows of their own for each expert, experts that nothing meets."""
    return [
        Case("row", [normal(101, 1, 1, 32), normal(102, 4, 8, 32), _chosen(103, 4, 1, 1, 2)]),
        Case("rows", [normal(104, 2, 9, 64), normal(105, 8, 24, 64), _chosen(106, 8, 2, 9, 3)]),
        Case("own", [normal(107, 5, 2, 32), normal(108, 4, 16, 32), _chosen(109, 4, 5, 2)]),
        Case("few", [normal(110, 3, 37), normal(111, 16, 11, 37), _chosen(112, 16, 3, 1)]),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "ExpertLinear",
        (1,),
        ("X", "W", "experts"),
        ("Y",),
        infer=infer_expert_linear,
        evaluate=evaluate_expert_linear,
        domain="halfbyte",
        encoded=frozenset({1}),
        encoded_rank=3,
        cases=expert_cases,
    ),
)
