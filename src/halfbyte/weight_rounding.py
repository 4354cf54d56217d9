"""The weights of a conversion as planned: calibrated, kept in a journal, or made when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from halfbyte.calibration import Machine, calibrated
from halfbyte.files import sha256
from halfbyte.ir.model import Model
from halfbyte.journal import Journal, job_of
from halfbyte.output_request import OutputRequest
from halfbyte.quant.transforms import TransformOptions

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import CalibrationReport, ProgressFor
    from halfbyte.quant.method import Chain
    from halfbyte.quant.plan import Plan


@dataclass(frozen=True)
class RoundingWork:
    """How weights are rounded: what is asked for, by which method, with what and where.

    place: where slow methods work, None for a dry run and for quick methods. origin: a hash of the
    source.
    """

    request: OutputRequest
    chain: Chain
    machine: Machine
    place: Journal | None
    origin: str
    progress: ProgressFor | None

    @property
    def transforms(self) -> TransformOptions:
        """Return the options of transforms."""
        given = self.request.calibration
        return TransformOptions(alpha=given.alpha, seed=given.data.seed)


@dataclass(frozen=True)
class RoundedWeights:
    """A model with every weight as planned, what a calibration reports, and notices."""

    model: Model
    calibration: CalibrationReport | None = None
    notices: tuple[str, ...] = ()


def rounded_weights(
    work: RoundingWork, model: Model, plan: Plan, importance: Mapping[str, NDArray[np.float32]]
) -> RoundedWeights:
    """Return the model with every weight as planned.

    importance: by weight; methods that calibrate have their own.

    Raises:
        HalfbyteError: as `calibrated`, or a weight cannot be encoded.
    """
    from halfbyte.quant.plan import apply_plan

    request, chain, place = work.request, work.chain, work.place
    if place is not None and chain.is_calibrated:
        done = calibrated(
            *(model, plan, chain, work.transforms, request.calibration, place, work.machine),
            work.origin,
            work.progress,
        )
        return RoundedWeights(done.model, done.report, done.notices)
    rounding = "rtn" if chain.is_calibrated else chain.rounding
    planned = apply_plan(model, plan, rounding, importance, request.compat)
    if place is None or not place.lasting:
        return RoundedWeights(planned)
    data = sha256(request.imatrix) if request.imatrix else ""
    method = [chain.name, asdict(work.transforms)]
    job = job_of(work.origin, plan, method, data, [request.device, request.compat])
    kept = _kept(model, planned, plan, place.weights(job), work.machine.threads, work.progress)
    return RoundedWeights(kept, notices=tuple(place.notices))


def _kept(
    model: Model,
    planned: Model,
    plan: Plan,
    folder: Path,
    threads: int,
    progress: ProgressFor | None,
) -> Model:
    """Return the planned model with rounded weights in files, where an earlier run left some."""
    from halfbyte.quant.spool import Spool

    decisions = dict(zip(model.weights, plan.decisions, strict=True))
    by_file = {d.tensor.name: name for name, d in decisions.items() if d.is_search}
    wanted = {name: (decisions[name].tensor, decisions[name].target) for name in by_file.values()}
    advance = None if progress is None else progress(len(wanted))
    found = Spool(folder).kept(wanted, planned.weights.__getitem__, threads, advance)
    return model.with_weights({**planned.weights, **found})
