"""The values of a graph on calibration inputs, seen one sample at a time.

A sample is as much of the first axis as the graph asks for, one row where it takes any number. So
nothing depends on how samples were put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError, QuantizationError
from halfbyte.ir.graph import Graph, Value
from halfbyte.quant.calibration.ranges import Observed
from halfbyte.runtime.session import Session

Arrays = Mapping[str, NDArray[Any]]


def samples_of(graph: Graph, batches: Iterable[Arrays]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield inputs by name, one sample each where the graph takes any number of rows.

    Raises:
        HalfbyteError: an input is not one of the graph's.
    """
    known = {value.name: value for value in graph.inputs}
    for batch in batches:
        unknown = [name for name in batch if name not in known]
        if unknown:
            raise HalfbyteError(
                f"calibration inputs: hold {unknown[0]!r}, the graph has no such input; its inputs "
                f"are {', '.join(known)}"
            )
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        counts = {name: _samples_in(known[name], array) for name, array in arrays.items()}
        most = max(counts.values(), default=0)
        if most < 2 or any(count not in (1, most) for count in counts.values()):
            yield arrays
            continue
        for index in range(most):
            yield {n: _sample(a, index, most) if counts[n] > 1 else a for n, a in arrays.items()}


def _samples_in(value: Value, array: NDArray[Any]) -> int:
    """Return how often the first axis of an input fits into that of an array."""
    if not array.ndim or not value.shape or not len(array):
        return 1
    first = value.shape[0]
    rows = first if isinstance(first, int) and first > 0 else 1
    return len(array) // rows if len(array) % rows == 0 else 1


def _sample(array: NDArray[Any], index: int, count: int) -> NDArray[Any]:
    rows = len(array) // count
    return array[index * rows : (index + 1) * rows]


def observed_graph(graph: Graph, values: Sequence[Value]) -> tuple[Graph, dict[str, Value]]:
    """Return a copy whose outputs are the given values, and these by the outputs' names."""
    twin = graph.copy()
    by_name = {value.name: value for value in twin.values()}
    twin.outputs = [by_name[value.name] for value in values]
    return twin, {value.name: value for value in values}


def observe_values(
    graph: Graph, values: Sequence[Value], samples: Iterable[Arrays], threads: int | None = None
) -> dict[Value, Observed]:
    """Return what the given values were over all samples.

    Raises:
        QuantizationError: there is no sample, or a value is NaN or infinite.
    """
    found = {value: Observed() for value in values}
    inputs = {value.name: value for value in graph.inputs if value in found}
    inner = [value for value in values if value.name not in inputs]
    twin, by_name = observed_graph(graph, inner)
    session = Session(twin, threads=threads, fuse=False)
    count = 0
    for count, sample in enumerate(samples, 1):  # noqa: B007
        for name, value in inputs.items():
            if name in sample:
                _take(found[value], name, np.asarray(sample[name]))
        results = session.run(sample) if inner else {}
        for name, array in results.items():
            _take(found[by_name[name]], name, array)
    if not count:
        raise QuantizationError("calibration", "has no samples, at least one is required")
    return found


def _take(observed: Observed, name: str, array: NDArray[Any]) -> None:
    try:
        observed.add(np.asarray(array, np.float32))
    except ValueError as error:
        raise QuantizationError(
            name, f"has {error} on the calibration inputs; check them, or keep its readers float"
        ) from None
