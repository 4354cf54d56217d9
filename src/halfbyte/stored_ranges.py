"""Ranges of activations that an output stores: found on its finished weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from halfbyte.calibration import CalibrationRequest, Machine, data_of
from halfbyte.integer_activations import ActivationRequest, require_inputs
from halfbyte.ir.activation_scheme import is_rounded
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.journal import Journal
from halfbyte.quant.spool import Spool

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import ProgressFor


@dataclass(frozen=True)
class Ranged:
    """A model that says how its activations are rounded, and lines about it."""

    model: Model
    notes: tuple[str, ...] = ()


def rounded_weights(model: Model, request: ActivationRequest) -> list[str]:
    """Return the names of the weights whose inputs are rounded."""
    found = model.weights.items()
    return [n for n, t in found if len(t.shape) > 1 and is_rounded(t.encoding, request.kind)]


def with_stored_ranges(
    model: Model,
    request: ActivationRequest,
    calibration: CalibrationRequest,
    place: Journal,
    machine: Machine,
    progress: ProgressFor | None = None,
) -> Ranged:
    """Return the model with a scale for what each rounded layer reads.

    model: with every weight as it will be stored. place: where the calibration works.

    Raises:
        HalfbyteError: no data is given, or it does not fit the model.
    """
    from halfbyte.converters.hugging_face.input_scales import with_input_scales
    from halfbyte.quant.calibration.input_ranges import RangeOptions, input_scales

    names = rounded_weights(model, request)
    require_inputs(request.mode, calibration)
    data = data_of(model, calibration)
    model = _kept(model, names, Spool(place.work), machine.threads)
    options = RangeOptions(
        request.kind,
        request.method,
        calibration.activation_limit_bytes,
        place.work,
        machine.device,
        machine.threads,
    )
    scales = input_scales(model, names, data.batches, options, progress)
    observer = "mse" if request.method == "mse" else "minmax"
    made = with_input_scales(model, request.kind, scales, observer)
    record: Mapping[str, Any] = made.metadata.get(CALIBRATION_KEY) or {"data": data.facts}
    record = {**record, "activations": {"mode": request.mode, "ranges": request.method}}
    made = replace(made, metadata={**made.metadata, CALIBRATION_KEY: record})
    note = (
        f"activations: ranges of {len(scales)} layers by {request.method}, "
        f"{data.batches.samples} samples"
    )
    return Ranged(made, (*data.notices, note))


def _kept(model: Model, names: list[str], spool: Spool, threads: int) -> Model:
    """Return the model with rounded weights in files: they are read to run and to be written."""
    from halfbyte.ir.tensor import FilePart

    weights = dict(model.weights)
    for name in names:
        if not all(isinstance(part, FilePart) for part in weights[name].parts.values()):
            weights[name] = spool.keep(weights[name], threads)
    return model.with_weights(weights)
