"""Calibrated quantization: a model run piece by piece, its weights rounded as their inputs come.

The quantized stream runs over what earlier weights became, so that later ones make up for it. Where
the method asks for it, the float stream runs beside it. Weights that no linear layer reads, or only
inside loops and branches, are rounded without data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.quant.calibration.batches import Batches, completed
from halfbyte.quant.calibration.findings import Findings
from halfbyte.quant.calibration.report import CalibrationReport as CalibrationReport
from halfbyte.quant.calibration.report import WeightReport as WeightReport
from halfbyte.quant.calibration.walk import Walk
from halfbyte.quant.method import Chain, MethodOptions
from halfbyte.quant.plan import Plan
from halfbyte.quant.spool import Spool
from halfbyte.quant.transforms import TransformOptions, get_transform

if TYPE_CHECKING:
    from halfbyte.quant.calibration.saved import SavedStatistics
    from halfbyte.quant.solver import Solver

ACTIVATION_LIMIT_BYTES = 128 << 20
ProgressFor = Callable[[int], Callable[[int], None] | None]


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration runs.

    folder: takes the rounded weights until they are written, and activations beyond
    `activation_limit_bytes`. compat: as for `apply_plan`.
    """

    folder: Path
    method: MethodOptions = field(default_factory=MethodOptions)
    transforms: TransformOptions = field(default_factory=TransformOptions)
    activation_limit_bytes: int = ACTIVATION_LIMIT_BYTES
    device: str = "cpu"
    threads: int | None = None
    compat: bool = False


def quantize_calibrated(
    model: Model,
    plan: Plan,
    chain: Chain,
    batches: Batches | None,
    options: CalibrationOptions,
    solver: Solver,
    *,
    statistics: SavedStatistics | None = None,
    journal: Path | None = None,
    progress: ProgressFor | None = None,
) -> tuple[Model, CalibrationReport]:
    """Return the model with every weight as planned, rounded by `chain` where it can be.

    Transforms of the whole model come before the plan (`transformed_model`); those of layers are
    applied here. batches: for methods that ask for it with the model's own text (`with_own_text`).
    statistics: instead of batches, gathered before on the float model. journal: a folder that keeps
    finished weights and what transforms found, so that a run that was stopped goes on from there;
    its caller sees to it that model, data and options are the same. The parts of the returned
    model's weights lie in `journal` or `options.folder` and must stay until it is written.
    progress: called with the number of steps; the function that it returns takes steps done.

    Raises:
        HalfbyteError: inputs of a weight are not finite, or the statistics are another model's.
    """
    if statistics is not None:
        statistics.require_model(model)
    elif batches is None:
        raise HalfbyteError(
            f"method {chain.name}: neither calibration data nor statistics were given, one is "
            "required; give --calib or --stats"
        )
    _require_one_order(plan, chain)
    if options.method.group_search is None and not model.graph.states:
        # Narrow text misleads the search in decoders; encoders lose much without it.
        options = replace(options, method=replace(options.method, group_search=True))
    runs = None if batches is None else completed(batches, model.graph)
    spool = Spool(options.folder if journal is None else journal)
    findings = None if journal is None else Findings(journal)
    walk = Walk(model, plan, chain, options, solver, spool, runs, statistics, findings)
    return walk.result(progress)


def _require_one_order(plan: Plan, chain: Chain) -> None:
    """Check that no stack of experts, each with an order of its own, is to share one order.

    Raises:
        UnsupportedError: one is.
    """
    for decision in plan.decisions:
        grid, stacked = decision.target.grid, len(decision.tensor.shape) > 2
        if chain.needs_hessian and decision.is_search and stacked and grid and grid.act_order:
            without = decision.target.name.replace("-actorder", "")
            what = f"{decision.target} of a stack of experts by {chain.name}"
            raise UnsupportedError(what, f"tensor {decision.tensor.name!r}", [without])


def transformed_model(
    model: Model, chain: Chain, options: TransformOptions
) -> tuple[Model, tuple[str, ...]]:
    """Return the model after the transforms of `chain` that concern a whole model, and notes."""
    notes: list[str] = []
    for name in chain.transforms:
        transform = get_transform(name)
        if transform.scope == "model":
            rewritten = transform.rewrite(model, options)
            model, notes = rewritten.model, [*notes, *rewritten.notes]
    return model, tuple(notes)
