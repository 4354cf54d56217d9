"""Evaluate one operator on arrays, its inferred types checked against the results."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.ops import op_spec
from support.old_forms import evaluate_graph, old_graph


def evaluate(key: str, *inputs: Any, outputs: int = 1, version: int = 0, **attributes: Any) -> Any:
    """Return the output of an operator in its newest version, a list of several outputs."""
    arrays = [None if v is None else np.asarray(v) for v in inputs]
    number = version or op_spec(key).versions[-1]
    graph, _ = old_graph(key, number, arrays, attributes, outputs)
    results = evaluate_graph(graph, arrays)
    return results[0] if outputs == 1 else results
