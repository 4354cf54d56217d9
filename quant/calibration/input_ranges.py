"""Ranges of what linear layers read, for outputs that store one for each layer.

The model runs piece by piece over all batches, its activations float and its weights as they will
be stored. Weights that read one value have one range. Where errors decide about it, those of a
column count by the squares of the weights that they are multiplied with: it is the error of the
layer's output that is to be small. So nothing changes when scales move between values and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.activation_scheme import REACH
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed
from halfbyte.quant.calibration.gather import constant_names
from halfbyte.quant.calibration.pieces import Site, cut
from halfbyte.quant.calibration.ranges import (
    BY_ERROR,
    METHODS,
    OF_INTEGERS,
    Observed,
    Rule,
    check_method,
    chosen_range,
)
from halfbyte.quant.calibration.streams import SiteRows, Stream

MOST = 1 << 20  # how often a column counts at most
Range = tuple[float, float]
ProgressFor = Callable[[int], Callable[[int], None] | None]


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are found.

    rule: how they are cut. folder: takes activations beyond the limit, None for the system's own.
    """

    rule: Rule
    activation_limit_bytes: int = 128 << 20
    folder: Path | None = None
    device: str = "cpu"
    threads: int | None = None


def symmetric_rule(method: str, kind: str) -> Rule:
    """Return how ranges are cut for codes around zero: `int` (int8) or `float` (e4m3).

    Raises:
        UnsupportedError: the method is unknown, or counts levels that floats do not have.
    """
    check_range_method(method, kind)
    return Rule(method, levels=254, symmetric=True, floats=kind == "float")


def check_range_method(method: str, kind: str) -> None:
    """Check that a method cuts ranges for codes of a kind.

    Raises:
        UnsupportedError: it is unknown, or counts levels that floats do not have.
    """
    check_method(method)
    if kind == "float" and method in OF_INTEGERS:
        known = [name for name in METHODS if name not in OF_INTEGERS]
        raise UnsupportedError(f"calibration method {method!r} of float8", "quantize", known)


def input_ranges(
    model: Model,
    weights: Collection[str],
    batches: Batches,
    options: RangeOptions,
    progress: ProgressFor | None = None,
) -> dict[str, Range]:
    """Return the range of what each weight reads by the weight's name; zero lies inside.

    Weights that no linear layer has are left out. progress: called with the number of runs of
    pieces; what it returns takes runs done.

    Raises:
        QuantizationError: a weight meets several inputs, or NaN or infinite values, or none.
    """
    names = constant_names(model)
    wanted = {names[name]: name for name in weights if name in names}
    whole = cut(model.graph, wanted)
    for name in whole.again:
        rule = "meets several inputs, one was required for a stored range"
        raise QuantizationError(wanted[name], f"{rule}; give --tensor {wanted[name]}=bfloat16")
    runs = completed(batches, model.graph)
    advance = None if progress is None else progress(len(whole.pieces) * len(runs.runs))
    found: dict[str, Range] = {}
    with ActivationStore(options.activation_limit_bytes, options.folder) as store:
        stream = Stream(runs, store, options.device, options.threads)
        for piece in whole.pieces:
            stream.advance(piece, advance)
            for site in piece.sites:
                columns = None
                if options.rule.method in BY_ERROR:
                    columns = column_counts([whole.graph.constants[n] for n in site.weights])
                ends = _range(site, stream, options.rule, columns)
                found |= {wanted[name]: ends for name in site.weights}
            stream.release(piece)
    return found


def column_counts(weights: Sequence[Tensor]) -> NDArray[np.int64]:
    """Return how often each column of what weights read counts: by the squares of its weights."""
    sums = np.zeros(weights[0].columns)
    for tensor in weights:
        for span in tensor.row_ranges():
            values = tensor.float32(*span).astype(np.float64)
            sums += np.einsum("ij,ij->j", values, values)
    share = sums / (sums.max() or 1.0)
    counts: NDArray[np.int64] = np.maximum(np.rint(share * MOST), 1).astype(np.int64)
    return counts


def _range(site: Site, stream: Stream, rule: Rule, columns: NDArray[np.int64] | None) -> Range:
    rows, seen = SiteRows(site, stream), Observed()
    for number in range(len(stream.batches.runs)):
        try:
            seen.add(rows.sample(number), columns)
        except ValueError as error:
            found = f"its inputs have {error} on the calibration data"
            raise QuantizationError(site.weights[0], f"{found}; check model and data") from None
    if not seen.histogram.total:
        raise QuantizationError(site.weights[0], "no row of calibration data reaches it; give more")
    return chosen_range([seen], rule)


def scale_of(ends: Range, kind: str) -> float:
    """Return the scale of a symmetric range, 1 for one without extent."""
    scale = np.float32(ends[1] / REACH[kind])
    return float(scale) if scale > 0 and np.isfinite(scale) else 1.0
