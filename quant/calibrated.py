"""Calibrated quantization: a model run piece by piece, its weights rounded as their inputs come.

The quantized stream runs over what earlier weights became, so that later ones make up for it. Where
the method asks for it, the float stream runs beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.ir.model import Model
from halfbyte.quant.calibration.batches import Batches
from halfbyte.quant.method import Chain, MethodOptions
from halfbyte.quant.plan import Plan
from halfbyte.quant.transforms import TransformOptions

if TYPE_CHECKING:
    from halfbyte.quant.calibration.saved import SavedStatistics
    from halfbyte.quant.solver import Solver

ACTIVATION_LIMIT_BYTES = 512 << 20
Progress = Callable[[int], None]
ProgressFor = Callable[[int], Progress | None]


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration runs.

    activation_limit_bytes: activations kept in memory; what is beyond goes to files in `folder`,
    which also takes the rounded weights until they are written (None: the system's temporary
    folder). compat: as for `apply_plan`.
    """

    method: MethodOptions = field(default_factory=MethodOptions)
    transforms: TransformOptions = field(default_factory=TransformOptions)
    activation_limit_bytes: int = ACTIVATION_LIMIT_BYTES
    folder: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    compat: bool = False


@dataclass(frozen=True)
class WeightReport:
    """What became of one weight.

    error, rtn_error: mean square of the output's error, summed over rows, and that of plain
    rounding; None where no inputs are known. tokens: rows that its inputs were taken from. experts:
    tokens of each matrix of a stack. note: what was done otherwise than asked.
    """

    name: str
    encoding: str
    method: str
    error: float | None = None
    rtn_error: float | None = None
    tokens: int = 0
    note: str = ""
    experts: tuple[int, ...] = ()


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did. largest: the largest |activation| by the name of each input."""

    method: str
    weights: tuple[WeightReport, ...]
    samples: int
    largest: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "method": self.method,
            "samples": self.samples,
            "weights": [vars(weight) for weight in self.weights],
            "largest": self.largest,
            "warnings": list(self.warnings),
        }


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
    applied here. statistics: instead of batches, gathered before on the float model. journal: a
    folder that keeps finished weights, so that a run that was stopped goes on from there; its
    caller sees to it that model, data and options are the same. The parts of the returned model's
    weights lie in `journal` or `options.folder` and must stay until it is written.

    Raises:
        HalfbyteError: inputs of a weight are not finite, or the statistics are another model's.
    """
    raise NotImplementedError


def transformed_model(
    model: Model, chain: Chain, options: TransformOptions
) -> tuple[Model, tuple[str, ...]]:
    """Return the model after the transforms of `chain` that concern a whole model, and notes."""
    raise NotImplementedError
