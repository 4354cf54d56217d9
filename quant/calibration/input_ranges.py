"""Ranges of what linear layers read, for servers that round it by one stored scale for each layer.

The model runs piece by piece over all batches, its activations float and its weights as they will
be stored. Weights that read one value have one range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed
from halfbyte.quant.calibration.gather import constant_names
from halfbyte.quant.calibration.pieces import Cut, Site, cut
from halfbyte.quant.calibration.ranges import (
    METHODS,
    OF_INTEGERS,
    Observed,
    Rule,
    check_method,
    chosen_range,
)
from halfbyte.quant.calibration.streams import SiteRows, Stream

REACH = {"int": 127.0, "float": 448.0}
ProgressFor = Callable[[int], Callable[[int], None] | None]


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are found.

    kind: of the codes, `int` (int8) or `float` (e4m3). method: a name in METHODS. folder: takes
    activations beyond the limit, None for the system's own.
    """

    kind: str = "int"
    method: str = "mse"
    activation_limit_bytes: int = 128 << 20
    folder: Path | None = None
    device: str = "cpu"
    threads: int | None = None

    @property
    def rule(self) -> Rule:
        """Return how ranges are cut."""
        return Rule(self.method, levels=254, symmetric=True, floats=self.kind == "float")


def check_range_method(method: str, kind: str) -> None:
    """Check that a method cuts ranges for codes of a kind.

    Raises:
        UnsupportedError: it is unknown, or counts levels that floats do not have.
    """
    check_method(method)
    if kind == "float" and method in OF_INTEGERS:
        known = [name for name in METHODS if name not in OF_INTEGERS]
        raise UnsupportedError(f"calibration method {method!r} of float8", "quantize", known)


def input_scales(
    model: Model,
    weights: Collection[str],
    batches: Batches,
    options: RangeOptions,
    progress: ProgressFor | None = None,
) -> dict[str, float]:
    """Return the scale of the inputs of each weight, a float32, by the weight's name.

    progress: called with the number of runs of pieces; what it returns takes runs done.

    Raises:
        UnsupportedError: the method is unknown.
        QuantizationError: a weight meets not one input, or NaN or infinite values, or none.
    """
    check_range_method(options.method, options.kind)
    names = constant_names(model)
    wanted = {names[name]: name for name in weights if name in names}
    whole = cut(model.graph, wanted)
    lost = [name for name in weights if name not in names]
    _require_one_input(whole, wanted, lost)
    runs = completed(batches, model.graph)
    advance = None if progress is None else progress(len(whole.pieces) * len(runs.runs))
    found: dict[str, float] = {}
    with ActivationStore(options.activation_limit_bytes, options.folder) as store:
        stream = Stream(runs, store, options.device, options.threads)
        for piece in whole.pieces:
            stream.advance(piece, advance)
            for site in piece.sites:
                scale = _scale(site, stream, options)
                found |= {wanted[name]: scale for name in site.weights}
            stream.release(piece)
    return found


def _require_one_input(whole: Cut, wanted: dict[str, str], lost: list[str]) -> None:
    """Check that each weight meets one value, which can be seen."""
    lost = [*lost, *(wanted[name] for name in whole.missing)]
    found = [(wanted[name], "meets several inputs") for name in whole.again]
    for name, what in [*found, *((name, "is read by no linear layer") for name in lost)]:
        rule = f"{what}, one was required for a stored range; give --tensor {name}=bfloat16"
        raise QuantizationError(name, rule)


def _scale(site: Site, stream: Stream, options: RangeOptions) -> float:
    rows, seen = SiteRows(site, stream), Observed()
    for number in range(len(stream.batches.runs)):
        try:
            seen.add(rows.sample(number))
        except ValueError as error:
            rule = (
                f"its inputs have {error} on the calibration data; check the model, or other data"
            )
            raise QuantizationError(site.weights[0], rule) from None
    if not seen.histogram.total:
        raise QuantizationError(site.weights[0], "no row of calibration data reaches it; give more")
    return scale_of(seen, options)


def scale_of(seen: Observed, options: RangeOptions) -> float:
    """Return the float32 by which values are divided before they are rounded."""
    _, high = chosen_range([seen], options.rule)
    scale = np.float32(high / REACH[options.kind])
    return float(scale) if scale > 0 and np.isfinite(scale) else 1.0
