"""Statistics of what linear layers meet in a model, gathered with plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.transforms import LinearInput
from halfbyte.quant.transforms.groups import EXPERT_LINEAR, LINEAR
from halfbyte.runtime.session import Session

LINEARS = (LINEAR, EXPERT_LINEAR)


def statistics_of(rows: NDArray[Any]) -> InputStatistics:
    """Return the sums over rows [n, K]."""
    wide = rows.astype(np.float64)
    return InputStatistics(
        wide.T @ wide,
        None,
        np.square(wide).sum(axis=0),
        np.abs(wide).sum(axis=0),
        rows.min(axis=0).astype(np.float32),
        rows.max(axis=0).astype(np.float32),
        len(rows),
    )


def token_ids(model: Model, count: int = 24, seed: int = 5) -> NDArray[np.int64]:
    """Return random ids [2, count] of the model's vocabulary."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, model.config["vocab_size"], (2, count))


def logits(model: Model, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the first output of the model for these ids."""
    return np.asarray(next(iter(Session(model, "reference").run({"input_ids": ids}).values())))


def layer_inputs(model: Model, ids: NDArray[np.int64], layer: int | None = 0) -> list[LinearInput]:
    """Return each value that linear layers of a layer read, with its statistics.

    The values are those of `model.graph`.
    """
    seen = _seen(model.graph, ids, layer)
    found = []
    for x, rows in seen.items():
        plain = [node for node, _ in x.uses if node.op == LINEAR]
        experts = [node for node, _ in x.uses if node.op == EXPERT_LINEAR]
        if plain:
            found.append(LinearInput(x, statistics_of(rows[0].reshape(-1, rows[0].shape[-1]))))
        if experts:
            weight = experts[0].inputs[1]
            assert weight is not None and weight.constant is not None
            found.append(LinearInput(x, _each(rows[0], rows[1], weight.constant.shape[0])))
    return found


def _each(x: NDArray[Any], chosen: NDArray[Any], count: int) -> list[InputStatistics | None]:
    if x.ndim == chosen.ndim:
        x = np.broadcast_to(x[..., None, :], (*chosen.shape, x.shape[-1]))
    return [
        statistics_of(x[chosen == expert]) if (chosen == expert).any() else None
        for expert in range(count)
    ]


def _seen(
    graph: Graph, ids: NDArray[np.int64], layer: int | None
) -> dict[Value, list[NDArray[Any]]]:
    """Return x, and the numbers of the experts where there are any, of each linear layer."""
    wanted: dict[Value, Value | None] = {}
    for node in graph.nodes:
        x = node.inputs[0] if node.op in LINEARS and node.layer == layer else None
        if x is not None:
            chosen = node.inputs[2] if node.op == EXPERT_LINEAR else None
            wanted[x] = wanted.get(x) or chosen
    names = {value.name for pair in wanted.items() for value in pair if value is not None}
    probe = graph.copy()
    probe.outputs += [
        value for node in probe.nodes for value in node.outputs
        if value.name in names and value not in probe.outputs
    ]  # fmt: skip
    results = Session(probe, "reference", fuse=False).run({"input_ids": ids})
    return {
        x: [results[value.name] for value in (x, chosen) if value is not None]
        for x, chosen in wanted.items()
    }
