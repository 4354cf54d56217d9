"""Ranges of activations that an output stores: found on its finished weights.

Folders for servers say them as scales of linear layers. An ONNX file of a language model with a
cache has pairs of QuantizeLinear and DequantizeLinear before its products; graphs without a cache
are rewritten before their weights are (`quant/activations.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from halfbyte.calibration import CalibrationRequest, Machine, data_of
from halfbyte.converters.format import StoredGrid
from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.integer_activations import DECLARING, ActivationRequest, require_inputs
from halfbyte.ir.activation_scheme import is_rounded
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.journal import Journal
from halfbyte.quant.spool import Spool

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import ProgressFor
    from halfbyte.quant.calibration.input_ranges import Range
    from halfbyte.quant.calibration.ranges import Rule

NARROW = "x86-avx2"


@dataclass(frozen=True)
class Ranged:
    """A model that says how its activations are rounded, lines about it, and grids by weight."""

    model: Model
    notes: tuple[str, ...] = ()
    grids: Mapping[str, StoredGrid] = field(default_factory=dict)


def is_measured(model: Model, request: ActivationRequest, target: str) -> bool:
    """Whether an output stores ranges that are found once its weights are finished.

    Raises:
        UnsupportedError: it does, and cannot have what is asked for besides.
    """
    from halfbyte.converters.onnx.language_model import is_language_model

    if not request.is_static or target == DECLARING:
        return request.is_static
    if not is_language_model(model) or not model.graph.states:
        return False
    where = "int8-static of a language model"
    if request.keep_float:
        raise UnsupportedError("--keep-float", where, advice="give --tensor GLOB=F32")
    if request.target == NARROW:
        raise UnsupportedError(f"--target {NARROW}", where, ["x86", "arm", "gpu"])
    return True


def with_stored_ranges(
    model: Model,
    request: ActivationRequest,
    calibration: CalibrationRequest,
    target: str,
    place: Journal,
    machine: Machine,
    progress: ProgressFor | None = None,
) -> Ranged:
    """Return the model with ranges of what each rounded layer reads.

    model: with every weight as it will be stored. place: where the calibration works.

    Raises:
        HalfbyteError: no data is given, or it does not fit the model.
    """
    from halfbyte.quant.calibration.input_ranges import RangeOptions, input_ranges

    require_inputs(request.mode, calibration)
    found = model.weights.items()
    names = [n for n, t in found if len(t.shape) > 1 and is_rounded(t.encoding, request.kind)]
    data = data_of(model, calibration)
    model = _kept(model, names, Spool(place.work), machine.threads)
    rule, stored = (_declared if target == DECLARING else _pairs)(request)
    options = RangeOptions(
        rule,
        calibration.activation_limit_bytes,
        place.work,
        machine.device,
        machine.threads,
    )
    ranges = input_ranges(model, names, data.batches, options, progress)
    made = stored(model, names, ranges)
    record: Mapping[str, Any] = model.metadata.get(CALIBRATION_KEY) or {"data": data.facts}
    record = {**record, "activations": {"mode": request.mode, "ranges": request.method}}
    told = replace(made.model, metadata={**made.model.metadata, CALIBRATION_KEY: record})
    samples = data.batches.samples
    note = f"activations: ranges of {len(ranges)} layers by {request.method}, {samples} samples"
    return replace(made, model=told, notes=(*data.notices, note))


Stored = Callable[[Model, list[str], "Mapping[str, Range]"], Ranged]


def _declared(request: ActivationRequest) -> tuple[Rule, Stored]:
    """Return how ranges are cut for servers, and what stores them as scales."""
    from halfbyte.converters.hugging_face.input_scales import with_input_scales
    from halfbyte.quant.calibration.input_ranges import scale_of, symmetric_rule

    def stored(model: Model, names: list[str], ranges: Mapping[str, Range]) -> Ranged:
        for name in names:
            if name not in ranges:
                rule = "no linear layer reads it, one was required for a stored range of its inputs"
                raise QuantizationError(name, f"{rule}; give --tensor {name}=bfloat16")
        scales = {name: scale_of(ranges[name], request.kind) for name in names}
        observer = "mse" if request.method == "mse" else "minmax"
        return Ranged(with_input_scales(model, request.kind, scales, observer))

    return symmetric_rule(request.method, request.kind), stored


def _pairs(request: ActivationRequest) -> tuple[Rule, Stored]:
    """Return how ranges are cut for an ONNX file, and what stores them as grids."""
    from halfbyte.quant.calibration.ranges import Rule, check_method
    from halfbyte.quant.qdq_presets import get_preset
    from halfbyte.quant.qdq_rewrite import grid_of

    check_method(request.method)
    preset = get_preset(request.target)

    def stored(model: Model, names: list[str], ranges: Mapping[str, Range]) -> Ranged:
        grids = {name: grid_of(*ends, preset) for name, ends in ranges.items()}
        kept = {n: StoredGrid(float(g.scale), g.zero, preset.activations) for n, g in grids.items()}
        return Ranged(model, grids=kept)

    levels = preset.highest - preset.lowest
    return Rule(request.method, levels=levels, symmetric=preset.symmetric), stored


def _kept(model: Model, names: list[str], spool: Spool, threads: int) -> Model:
    """Return the model with rounded weights in files: they are read to run and to be written."""
    from halfbyte.ir.tensor import FilePart

    weights = dict(model.weights)
    wanted = {
        name: (weights[name], weights[name].encoding)
        for name in names
        if not all(isinstance(part, FilePart) for part in weights[name].parts.values())
    }
    return model.with_weights({**weights, **spool.kept(wanted, weights.__getitem__, threads)})
