"""One calibrated quantization: transforms of layers, then the pieces in order, then the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import and_others
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import transcode
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms import CALIBRATED, get_algorithm, get_calibrated
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches
from halfbyte.quant.calibration.findings import Findings, LayerFindings
from halfbyte.quant.calibration.gather import SavedInputs, constant_names
from halfbyte.quant.calibration.pieces import Cut, Piece, Site, cut
from halfbyte.quant.calibration.report import CalibrationReport, WeightReport
from halfbyte.quant.calibration.rounding import Rounding, SiteInputs
from halfbyte.quant.calibration.statistics import FLOAT16_MARGIN, WeightStatistics
from halfbyte.quant.calibration.streams import SiteRows, Stream
from halfbyte.quant.method import Chain
from halfbyte.quant.plan import Decision, Plan
from halfbyte.quant.spool import Spool
from halfbyte.quant.transforms import (
    Folded,
    LayerTransform,
    LinearInput,
    TransformOptions,
    get_transform,
)
from halfbyte.quant.transforms.layer import replayed

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import CalibrationOptions
    from halfbyte.quant.calibration.saved import SavedStatistics
    from halfbyte.quant.solver import Solver

Progress = Callable[[int], None]
EXPERT_BYTES = 1 << 30  # of matrices of statistics that a layer's experts may have at once
ProgressFor = Callable[[int], Progress | None]


@dataclass(eq=False)
class Walk:
    """One calibrated quantization; weights go by the names of the graph's constants.

    findings: where what transforms found is kept; None if no later run is to go on from here.
    """

    model: Model
    plan: Plan
    chain: Chain
    options: CalibrationOptions
    solver: Solver
    spool: Spool
    batches: Batches | None
    saved: SavedStatistics | None
    findings: Findings | None = None
    finished: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    divisors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    importance: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reports: dict[str, WeightReport] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    advance: Progress | None = None

    @cached_property
    def names(self) -> dict[str, str]:
        """Return the names of constants by those of weights."""
        return constant_names(self.model)

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """Return the decisions on the graph's constants."""
        by_weight = zip(self.model.weights, self.plan.decisions, strict=True)
        return {self.names[name]: d for name, d in by_weight if name in self.names}

    @cached_property
    def targets(self) -> dict[str, Encoding]:
        """Return what the matrices among the constants are to be rounded to."""
        return {
            name: decision.target
            for name, decision in self.decisions.items()
            if decision.is_search
            and decision.target.is_quantized
            and len(decision.tensor.shape) in (2, 3)
        }

    @cached_property
    def stored(self) -> dict[str, Encoding]:
        """Return what constants will be stored in, those left out that keep their codes."""
        return {
            name: decision.target
            for name, decision in self.decisions.items()
            if name in self.targets or not decision.target.is_quantized
        }

    @cached_property
    def layers(self) -> list[LayerTransform]:
        """Return the transforms that see one layer at a time."""
        found = (get_transform(name) for name in self.chain.transforms)
        return [transform for transform in found if transform.scope == "layer"]

    @cached_property
    def whole(self) -> Cut:
        """Return the pieces to round by."""
        method = self.options.method
        return cut(self.model.graph, self.targets, method.true_sequential)

    @cached_property
    def by_layers(self) -> Cut:
        """Return the pieces to transform by."""
        return cut(self.model.graph, self.targets, False, replay=False)

    def result(self, progress: ProgressFor | None) -> tuple[Model, CalibrationReport]:
        """Do everything; return the model and the report."""
        calibrated = self.chain.rounding in CALIBRATED
        if progress is not None and self.batches is not None:
            streams = 1 + self.chain.needs_float_stream if calibrated else 0
            passes = len(self.by_layers.pieces) if self.layers else 0
            steps = (passes + streams * len(self.whole.pieces)) * len(self.batches.runs)
            if self._keeps_plain and not calibrated:
                steps += len(self._plainly(False))
            self.advance = progress(steps)
        if self.layers:
            self._transform()
        self._without_data(calibrated)
        if calibrated:
            self._warn_of_shared()
            self._round()
        return self._model(), self._report()

    def _weight(self, constant: str) -> Tensor:
        """Return a float weight as transforms left it."""
        return self.changed.get(constant, self.decisions[constant].tensor)

    def _transform(self) -> None:
        """Let each layer's transforms change its weights, over what the float model computes."""
        findings, pieces = self.findings, self.by_layers.pieces
        done = findings is not None and all(findings.has(n) for n in range(len(pieces)))
        with ExitStack() as stack:
            stream = None if done else self._stream(stack, 1)
            for number, piece in enumerate(pieces):
                if stream is not None:
                    stream.advance(piece, self.advance)
                elif self.advance is not None and self.batches is not None:
                    self.advance(len(self.batches.runs))
                known = None if findings is None else findings.of(number)
                if known is None:
                    known = self._searched(piece, stream)
                    if findings is not None:
                        findings.keep(number, known)
                else:
                    self._replayed(piece, known)
                self.importance |= known.importance
                if stream is not None:
                    stream.release(piece)

    def _searched(self, piece: Piece, stream: Stream | None) -> LayerFindings:
        """Let the transforms search a layer; return what they found."""
        inputs = self._layer_inputs(piece, stream)
        found = []
        for transform in self.layers:
            folded = transform.fold(
                self.by_layers.graph, inputs, self.stored, self._transform_options, self.solver
            )
            self._take(folded)
            found.append(folded.found)
            inputs = [_divided(x, folded.divisors.get(x.x.name)) for x in inputs]
        return LayerFindings(found, self._weighed(piece, inputs))

    def _replayed(self, piece: Piece, known: LayerFindings) -> None:
        """Change a layer's weights as an earlier run did."""
        values = [site.x for site in piece.sites]
        for found in known.found:
            self._take(replayed(self.by_layers.graph, values, self.stored, found))

    def _take(self, folded: Folded) -> None:
        """Put what a transform made of a layer in its place."""
        for name, tensor in folded.weights.items():
            kept = self._settled(name, tensor)
            self.changed[name] = kept
            self.by_layers.graph.set_constant(name, kept)
        for name, divisor in folded.divisors.items():
            held = self.divisors.get(name)
            self.divisors[name] = divisor if held is None else held * divisor
        self.left |= folded.left

    @property
    def _transform_options(self) -> TransformOptions:
        """Return the options; ranges are clipped only for plain rounding, others choose theirs."""
        given = self.options.transforms
        return replace(given, clip=given.clip and self.chain.rounding not in CALIBRATED)

    def _weighed(self, piece: Piece, inputs: list[LinearInput]) -> dict[str, NDArray[np.float32]]:
        """Return the importance for encodings that search their scales by it.

        Ranges of affine encodings are searched by transforms, with more than mean squares.
        """
        known = {entry.x.name: _importance(entry.statistics) for entry in inputs}
        return {
            name: known[site.x.name]
            for site in piece.sites
            for name in site.weights
            if not isinstance(self.targets[name], Affine)
        }

    def _settled(self, constant: str, tensor: Tensor) -> Tensor:
        """Return a changed weight; in its final type where that is no quantized one.

        Later weights can then make up for what is lost there.
        """
        decision = self.decisions.get(constant)
        if decision is None or constant in self.targets or decision.target.is_quantized:
            return tensor
        return transcode(tensor, decision.target)

    def _layer_inputs(self, piece: Piece, stream: Stream | None) -> list[LinearInput]:
        """Return each input of a layer's linears once, with its statistics."""
        found: dict[str, LinearInput] = {}
        for site in piece.sites:
            inputs = self._inputs(site, stream)
            if site.x.name not in found:
                held = self._statistics(site, inputs, True)
                found[site.x.name] = LinearInput(site.x, held)
        return list(found.values())

    def _statistics(self, site: Site, inputs: SiteInputs, hessian: bool) -> WeightStatistics:
        """Return the statistics of a site; experts with rows of their own have one each."""
        if site.experts is None or not inputs.own_rows:
            return inputs.statistics(self.solver, hessian)
        hessian &= 8 * site.matrices * site.columns**2 <= EXPERT_BYTES
        return [inputs.of_expert(expert, self.solver, hessian) for expert in range(site.matrices)]

    def _inputs(
        self, site: Site, stream: Stream | None, beside: Stream | None = None
    ) -> SiteInputs:
        if stream is not None:
            return SiteRows(site, stream, beside)
        assert self.saved is not None
        weight = self.decisions[site.weights[0]].tensor.name
        return SavedInputs(self.saved, weight, self.divisors.get(site.x.name))

    def _stream(self, stack: ExitStack, streams: int) -> Stream | None:
        """Return a new stream over the batches, None where statistics come from a file."""
        if self.saved is not None or self.batches is None:
            return None
        options = self.options
        limit = options.activation_limit_bytes // streams
        store = stack.enter_context(ActivationStore(limit, options.folder))
        return Stream(self.batches, store, options.device, options.threads, dict(self.changed))

    def _without_data(self, calibrated: bool) -> None:
        """Round what has no site, or everything if the chain rounds without data."""
        note = "no linear layer outside of loops reads it" if calibrated else ""
        chosen = self._plainly(calibrated)
        if self._keeps_plain:
            wanted = {name: (self._weight(name), self.decisions[name].target) for name in chosen}
            threads = self.options.threads or 1
            step = None if calibrated else self.advance
            self.finished |= self.spool.kept(wanted, self._plain_weight, threads, step)
        else:
            self.finished |= {name: self._plain_weight(name) for name in chosen}
        for name in chosen:
            self._tell(self.decisions[name], note)

    def _plainly(self, calibrated: bool) -> list[str]:
        """Return what is rounded without data: all of it, or what has no site."""
        sites = {name for piece in self.whole.pieces for name in piece.weights}
        return [
            name
            for name, decision in self.decisions.items()
            if decision.is_search and not (calibrated and name in sites)
        ]

    @property
    def _keeps_plain(self) -> bool:
        """Whether what is rounded without data is computed at once, into files.

        A stream reads it, and then the writer; or a later run is to find it finished.
        """
        return self.chain.rounding in CALIBRATED or self.findings is not None

    def _plain_weight(self, name: str) -> Tensor:
        """Return a weight rounded without data, while it is read."""
        return self._rounded(self.decisions[name], self._weight(name), self.importance.get(name))

    def _tell(self, decision: Decision, note: str) -> None:
        name = decision.tensor.name
        self.reports[name] = WeightReport(name, decision.target.name, self._plain, note=note)

    @property
    def _plain(self) -> str:
        return "rtn" if self.chain.rounding in CALIBRATED else self.chain.rounding

    def _rounded(
        self, decision: Decision, tensor: Tensor, importance: NDArray[np.float32] | None
    ) -> Tensor:
        algorithm = get_algorithm(self._plain)
        return algorithm(tensor, decision.target, importance, self.options.compat)

    def _warn_of_shared(self) -> None:
        for name in self.whole.again:
            weight = self.decisions[name].tensor.name
            self.warnings.append(f"{weight}: meets several inputs, the first decides its rounding")

    def _round(self) -> None:
        """Walk the pieces: run, then round what reads the values that came out."""
        cross = self.chain.needs_float_stream
        rounding = Rounding(
            self.chain.rounding,
            get_calibrated(self.chain.rounding),
            self.options.method,
            self.solver,
            self.spool,
            cross,
        )
        with ExitStack() as stack:
            streams = 2 if cross else 1
            stream = self._stream(stack, streams)
            beside = self._stream(stack, streams) if cross else None
            running = [held for held in (stream, beside) if held is not None]
            if stream is not None:
                stream.weights |= self.finished
            for piece in self.whole.pieces:
                for held in running:
                    held.advance(piece, self.advance)
                for site in piece.sites:
                    weights = {name: self._weight(name) for name in site.weights}
                    inputs = self._inputs(site, stream, beside)
                    for name, tensor, report in rounding.round_site(
                        site, inputs, weights, self.targets
                    ):
                        self.finished[name] = tensor
                        self.reports[report.name] = report
                        if stream is not None:
                            stream.weights[name] = tensor
                for held in running:
                    held.release(piece)
        self.largest = rounding.largest

    def _model(self) -> Model:
        """Return the model over the new weights."""
        weights: dict[str, Tensor] = {}
        for (name, tensor), decision in zip(
            self.model.weights.items(), self.plan.decisions, strict=True
        ):
            constant = self.names.get(name, "")
            source = self.changed.get(constant, tensor)
            if constant in self.finished:
                weights[name] = self.finished[constant]
            elif source.encoding == decision.target:
                weights[name] = source
            elif decision.is_search:
                weights[name] = self._rounded(decision, source, None)
                self._tell(decision, "not in the graph")
            else:
                weights[name] = transcode(source, decision.target)
        return self.model.with_weights(weights)

    def _report(self) -> CalibrationReport:
        order = [self.reports[name] for name in self.model.weights if name in self.reports]
        for x, value in self.largest.items():
            if value > FLOAT16_MARGIN:
                self.warnings.append(
                    f"{x}: activations reach {value:.3g}, float16 ends at 65504; mind it when "
                    "they are to be quantized or run in float16"
                )
        reasons: dict[str, list[str]] = {}
        for x, reason in self.left.items():
            reasons.setdefault(reason, []).append(x)
        for reason, inputs in reasons.items():
            self.warnings.append(f"no factors on {inputs[0]}{and_others(inputs)}: {reason}")
        noted: dict[str, list[str]] = {}
        for report in order:
            if report.note and report.method == self.chain.rounding:
                noted.setdefault(report.note, []).append(report.name)
        for note, names in noted.items():
            self.warnings.append(f"{names[0]}{and_others(names)}: {note}")
        samples = 0 if self.batches is None else self.batches.samples
        if self.saved is not None:
            samples = self.saved.samples
            self.warnings.append(
                f"{self.saved.path}: statistics of the float model, so that no weight makes up for "
                "what earlier ones lost"
            )
        return CalibrationReport(
            self.chain.name, tuple(order), samples, self.largest, tuple(self.warnings)
        )


def _divided(given: LinearInput, divisor: NDArray[np.float32] | None) -> LinearInput:
    """Return an input after a transform divided it."""
    held = given.statistics
    if divisor is None:
        return given
    if not isinstance(held, list):
        return LinearInput(given.x, held.divided(divisor))
    experts = [
        None if one is None else one.divided(divisor if divisor.ndim == 1 else divisor[number])
        for number, one in enumerate(held)
    ]
    return LinearInput(given.x, experts)


def _importance(statistics: WeightStatistics) -> NDArray[np.float32]:
    """Return mean squares [columns], or [experts, columns] with ones where no row came."""
    if not isinstance(statistics, list):
        return statistics.importance
    width = next((held.columns for held in statistics if held is not None), 0)
    rows = [np.ones(width, np.float32) if h is None else h.importance for h in statistics]
    return np.stack(rows)
