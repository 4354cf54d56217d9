"""Compare the outputs of two models that are not language models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.dtypes import FLOATING, INTEGERS, numpy_dtype
from halfbyte.ir.graph import Graph
from halfbyte.verification.metrics import output_error
from halfbyte.verification.stored_graph import Runnable

RANDOM_SEED = 20240229
SYMBOL_SIZE = 8
MADE = FLOATING | INTEGERS | {"bool"}

Arrays = Mapping[str, NDArray[Any]]


def random_inputs(graph: Graph, batches: int = 4) -> list[dict[str, NDArray[Any]]]:
    """Return reproducible inputs for a graph: normal floats, small non-negative integers."""
    generator = np.random.Generator(np.random.PCG64(RANDOM_SEED))
    found = []
    for _ in range(batches):
        inputs = {}
        for value in graph.inputs:
            shape = [SYMBOL_SIZE if isinstance(dim, str) else dim for dim in value.shape or ()]
            name = value.dtype or "float32"
            if name not in MADE:
                raise UnsupportedError(
                    f"making an input of type {name}", f"input {value.name!r}", advice="give --data"
                )
            dtype = numpy_dtype(name)
            if name in FLOATING:
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
        first, second = (flat(model.run(dict(inputs))) for model in (reference, candidate))
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
            for figures, values in zip(pair, _figures(array, second[name]), strict=True):
                figures.append(values.ravel())
    return [
        {"name": name, **output_error.summarize(np.concatenate(a), np.concatenate(b))}
        for name, (a, b) in collected.items()
    ]


def flat(results: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return outputs by name, the elements of a sequence one by one, no empty optionals."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in results.items():
        if isinstance(value, list):
            found |= flat({f"{name}.{index}": element for index, element in enumerate(value)})
        elif value is not None:
            found[name] = np.asarray(value)
    return found


def _figures(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two outputs as numbers; for strings 1, and 1 where they are equal."""
    if first.dtype.kind not in "OUS":
        return first, second
    return np.ones(first.shape), (first == second).astype(np.float64)


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
