"""Compare the outputs of two models that are not language models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.ir.graph import Graph
from halfbyte.verification.metrics import output_error
from halfbyte.verification.stored_graph import Runnable

RANDOM_SEED = 20240229
SYMBOL_SIZE = 8

Arrays = Mapping[str, NDArray[Any]]


def random_inputs(graph: Graph, batches: int = 4) -> list[dict[str, NDArray[Any]]]:
    """Return reproducible inputs for a graph: normal floats, small non-negative integers."""
    generator = np.random.Generator(np.random.PCG64(RANDOM_SEED))
    found = []
    for _ in range(batches):
        inputs = {}
        for value in graph.inputs:
            shape = [SYMBOL_SIZE if isinstance(dim, str) else dim for dim in value.shape or ()]
            dtype = np.dtype(value.dtype or "float32")
            if dtype.kind == "f":
                inputs[value.name] = generator.standard_normal(shape).astype(dtype)
            else:
                inputs[value.name] = generator.integers(0, 2, shape).astype(dtype)
        found.append(inputs)
    return found


def compare(
    reference: Runnable, candidate: Runnable, batches: Iterable[Arrays]
) -> list[dict[str, Any]]:
    """Return name, cosine, max_abs_error and max_rel_error of each output over all batches.

    Outputs that only one model has are left out.

    Raises:
        HalfbyteError: the models share no output, or outputs have different shapes.
    """
    collected: dict[str, tuple[list[NDArray[Any]], list[NDArray[Any]]]] = {}
    for inputs in batches:
        first, second = reference.run(dict(inputs)), candidate.run(dict(inputs))
        shared = [name for name in first if name in second]
        if not shared:
            raise HalfbyteError(
                f"the models share no output: {', '.join(first)} against "
                f"{', '.join(second)}; compare two forms of the same model"
            )
        for name in shared:
            array = first[name]
            if array.shape != second[name].shape:
                raise HalfbyteError(
                    f"output {name!r}: shapes {array.shape} and {second[name].shape} differ; "
                    "compare two forms of the same model"
                )
            pair = collected.setdefault(name, ([], []))
            pair[0].append(np.asarray(array).ravel())
            pair[1].append(np.asarray(second[name]).ravel())
    return [
        {"name": name, **output_error.summarize(np.concatenate(a), np.concatenate(b))}
        for name, (a, b) in collected.items()
    ]


def worst(outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the worst figure over all outputs, which gates judge; NaN is the worst."""
    found = {
        name: np.array([entry[name] for entry in outputs], np.float64)
        for name in ("cosine", "max_abs_error", "max_rel_error")
    }
    return {
        "cosine": float(found["cosine"].min()),
        "max_abs_error": float(found["max_abs_error"].max()),
        "max_rel_error": float(found["max_rel_error"].max()),
    }
