""".npz files of a graph's inputs to calibrate on, by name, a sample along the first axis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.array_files import read_inputs
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Graph, Value

RUN_SAMPLES = 8
_UNNAMED = re.compile(r"arr_(\d+)")

Inputs = Mapping[str, Any]
Array = NDArray[Any]


def file_inputs(path: Path, graph: Graph) -> dict[str, Any]:
    """Return the inputs in an .npz file; arrays that numpy named go to the inputs in their order.

    Raises:
        FormatError: an array is not one of the graph's inputs, has another shape, or holds NaN.
    """
    found = read_inputs(path, graph)
    values = {value.name: value for value in graph.inputs}
    if found and all(_UNNAMED.fullmatch(name) for name in found) and not found.keys() & values:
        order = sorted(found, key=lambda name: int(name.removeprefix("arr_")))
        if len(order) <= len(values):
            found = {name: found[key] for name, key in zip(values, order, strict=False)}
    if not found:
        raise FormatError(path, f"holds no array; inputs are {', '.join(values)}")
    for name, given in found.items():
        if name not in values:
            known = ", ".join(values)
            raise FormatError(path, f"array {name!r} is no input of the model; inputs are {known}")
        if not isinstance(given, list):
            check_input(path, values[name], given)
    return found


def check_input(path: Path, value: Value, array: Array) -> None:
    """Check an array against what the graph declares.

    Raises:
        FormatError: rank, shape or kind differ, or a number is NaN or infinite.
    """
    where = f"array {value.name!r}"
    wanted = value.shape
    if wanted is not None and not _fits(wanted, array.shape):
        shown = "x".join("?" if not isinstance(n, int) or n < 0 else str(n) for n in wanted)
        found = "x".join(map(str, array.shape)) or "a single number"
        # Samples stand one after the other where the first axis has a length of its own.
        if wanted and isinstance(wanted[0], int) and wanted[0] > 0:
            shown += " (or several along the first axis)"
        rule = f"{where} is {found}, {shown or 'a single number'} was required"
        raise FormatError(path, rule)
    if not array.size:
        raise FormatError(path, f"{where} is empty, at least one sample is required")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise FormatError(path, f"{where} holds NaN or infinities; leave such samples out")
    is_text = (value.dtype or "").endswith("string")
    number_of_another_kind = value.dtype in FLOATING and array.dtype.kind in "iub"
    if (array.dtype.kind in "OSU") != is_text or number_of_another_kind:
        raise FormatError(path, f"{where} holds {array.dtype}, {value.dtype} was required")


def _fits(wanted: Sequence[Any], shape: tuple[int, ...]) -> bool:
    if len(wanted) != len(shape):
        return False
    for place, (asked, found) in enumerate(zip(wanted, shape, strict=True)):
        if not isinstance(asked, int) or asked < 0:
            continue
        whole = place == 0 and asked > 0 and found % asked == 0
        if found != asked and not whole:
            return False
    return True


def samples_of(graph: Graph, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield inputs with as many rows each as the graph asks for, one where it takes any number.

    Inputs without a common number of samples, and lists, stay together.
    """
    values = {value.name: value for value in graph.inputs}
    if any(isinstance(given, list) for given in inputs.values()):
        yield dict(inputs)
        return
    counts = {name: _samples_in(values[name], np.asarray(a)) for name, a in inputs.items()}
    most = max(counts.values())
    if any(count not in (1, most) for count in counts.values()):
        yield dict(inputs)
        return
    for place in range(most):
        yield {
            name: given if counts[name] == 1 else _part(given, place, most)
            for name, given in inputs.items()
        }


def _samples_in(value: Value, array: Array) -> int:
    if not array.ndim or not value.shape:
        return 1
    asked = value.shape[0]
    rows = asked if isinstance(asked, int) and asked > 0 else 1
    return len(array) // rows


def _part(array: Array, place: int, count: int) -> Array:
    rows = len(array) // count
    return array[place * rows : (place + 1) * rows]


def joined(graph: Graph, samples: Iterable[Inputs]) -> list[dict[str, Any]]:
    """Return samples put together to runs of a few, where the graph takes any number of them."""
    values = {value.name: value for value in graph.inputs}
    runs: list[list[Inputs]] = []
    for sample in samples:
        free = all(_is_free(values[name], given) for name, given in sample.items())
        alike = bool(runs) and free and _shapes(runs[-1][0]) == _shapes(sample)
        if alike and len(runs[-1]) < RUN_SAMPLES:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return [
        dict(run[0]) if len(run) == 1 else {n: np.concatenate([s[n] for s in run]) for n in run[0]}
        for run in runs
    ]


def _is_free(value: Value, given: Any) -> bool:
    if isinstance(given, list) or not value.shape:
        return False
    return not isinstance(value.shape[0], int)


def _shapes(sample: Inputs) -> dict[str, Any]:
    return {n: None if isinstance(a, list) else np.shape(a)[1:] for n, a in sample.items()}


def required_input(graph: Graph, ranks: Sequence[int], what: str) -> Value:
    """Return the one input of a graph that can take `what`, by the number of its axes.

    Raises:
        HalfbyteError: there is none, or there are several.
    """
    fitting = [v for v in graph.inputs if v.shape is not None and len(v.shape) in ranks]
    if len(fitting) != 1:
        listed = ", ".join(value.name for value in graph.inputs)
        raise HalfbyteError(
            f"calibration: {len(fitting)} inputs could take {what} (inputs: {listed}), one was "
            "required; give .npz files of inputs"
        )
    return fitting[0]
