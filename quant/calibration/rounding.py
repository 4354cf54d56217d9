"""Rounds the weights of a site with what is known of their inputs, into files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.part_views import matrix_of
from halfbyte.ir.streamed_parts import naming
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms import Calibrated, Solved
from halfbyte.quant.calibration.pieces import Site
from halfbyte.quant.calibration.report import WeightReport
from halfbyte.quant.calibration.statistics import Grams, InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.spool import Spool, SpoolWriter

if TYPE_CHECKING:
    from halfbyte.quant.solver import Solver

CHUNK_BYTES = 32 << 20  # of float32 rows that are rounded in one call
FEW_TOKENS = 32
KEPT_FACTORS = 2


class SiteInputs(Protocol):
    """Where the statistics of a site come from: rows of a stream, or a file."""

    @property
    def own_rows(self) -> bool:
        """Whether each row meets one expert of its own."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the rows of each expert."""

    def statistics(self, solver: Grams, hessian: bool, cross: bool = False) -> InputStatistics:
        """Return the statistics of all rows."""

    def of_expert(
        self, expert: int, solver: Grams, hessian: bool, cross: bool = False
    ) -> InputStatistics | None:
        """Return the statistics of one expert's rows, None where there are none."""


class SharedFactors:
    """A solver that keeps the last factors: weights that read one value share its matrix."""

    def __init__(self, solver: Solver) -> None:
        """Wrap a solver."""
        self._solver = solver
        self._kept: dict[bytes, NDArray[np.float64] | None] = {}

    def factor(self, hessian: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the solver's factor, read-only."""
        key = hashlib.blake2b(np.ascontiguousarray(hessian).data, digest_size=20).digest()
        if key not in self._kept:
            while len(self._kept) >= KEPT_FACTORS:
                del self._kept[next(iter(self._kept))]
            made = self._kept[key] = self._solver.factor(hessian)
            if made is not None:
                made.flags.writeable = False
        return self._kept[key]

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept.clear()

    def __getattr__(self, name: str) -> Any:
        """Return everything else of the solver."""
        return getattr(self._solver, name)


def few_tokens(columns: int) -> int:
    """Return how many rows a matrix of an expert needs to be rounded by its own statistics."""
    return max(FEW_TOKENS, columns // 8)


@dataclass(eq=False)
class _Tally:
    """Errors over the matrices of a weight, each weighed by its rows."""

    error: float = 0.0
    rtn_error: float = 0.0
    weight: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, error: float, rtn_error: float, count: int) -> None:
        """Take the errors of one matrix that met `count` rows."""
        self.error += error * count
        self.rtn_error += rtn_error * count
        self.weight += count

    def means(self) -> tuple[float | None, float | None]:
        """Return the two errors, None where nothing is known."""
        if not self.weight:
            return None, None
        return self.error / self.weight, self.rtn_error / self.weight


class Rounding:
    """Rounds weights with one algorithm; results go to a spool."""

    def __init__(
        self,
        method: str,
        algorithm: Calibrated,
        options: MethodOptions,
        solver: Solver,
        spool: Spool,
        cross: bool = False,
    ) -> None:
        """Take what all weights share; cross: the algorithm asks for the float model's inputs."""
        self._method = method
        self._algorithm = algorithm
        self._options = options
        self._factors = SharedFactors(solver)
        self._solver = cast("Solver", self._factors)
        self._spool = spool
        self._cross = cross
        self.largest: dict[str, float] = {}

    def round_site(
        self,
        site: Site,
        inputs: SiteInputs,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Encoding],
    ) -> Iterator[tuple[str, Tensor, WeightReport]]:
        """Yield each weight of a site, rounded, and what became of it."""
        missing = []
        for name in site.weights:
            kept = self._spool.finished(weights[name], targets[name])
            if kept is None:
                missing.append(name)
            else:
                tensor, record = kept
                experts = tuple(record.pop("experts", ()))
                self.largest[site.x.name] = record.pop("largest", 0.0)
                yield name, tensor, WeightReport(**record, experts=experts)
        if not missing:
            return
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(self._spool.writer(weights[name], targets[name]))
                for name in missing
            }
            tallies = {name: _Tally() for name in missing}
            counts: Sequence[int] = ()
            if site.experts is None:
                tokens = self._dense(site, inputs, weights, targets, writers, tallies)
            else:
                counts = inputs.counts.tolist()
                tokens = sum(counts)
                self._experts(site, inputs, weights, targets, writers, tallies)
            self._factors.forget()
            for name, writer in writers.items():
                tally = tallies[name]
                report = WeightReport(
                    weights[name].name,
                    targets[name].name,
                    self._method,
                    *tally.means(),
                    tokens,
                    "; ".join(tally.notes),
                    tuple(counts),
                )
                kept_record = {**asdict(report), "largest": self.largest.get(site.x.name, 0.0)}
                yield name, writer.finish(kept_record), report

    def _dense(
        self,
        site: Site,
        inputs: SiteInputs,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Encoding],
        writers: Mapping[str, SpoolWriter],
        tallies: Mapping[str, _Tally],
    ) -> int:
        """Round weights that are one matrix each; return how many rows their inputs had."""
        statistics = inputs.statistics(self._solver, True, self._cross)
        self.largest[site.x.name] = statistics.largest
        for name, writer in writers.items():
            tally = tallies[name]
            if statistics.count < few_tokens(site.columns):
                tally.notes[f"only {statistics.count} rows for {site.columns} columns"] = None
            self._matrix(weights[name], targets[name], statistics, writer, tally)
        return statistics.count

    def _experts(
        self,
        site: Site,
        inputs: SiteInputs,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Encoding],
        writers: Mapping[str, SpoolWriter],
        tallies: Mapping[str, _Tally],
    ) -> None:
        """Round stacks of matrices, one expert after the other."""
        counts = inputs.counts
        limit = few_tokens(site.columns)
        scarce = int((counts < limit).sum())
        shared = inputs.statistics(self._solver, True, self._cross) if scarce else None
        largest = 0.0 if shared is None else shared.largest
        note = f"{scarce} of {len(counts)} experts saw fewer than {limit} tokens: rounded by the "
        note += "statistics of all experts' tokens"
        if self._cross and inputs.own_rows:
            for tally in tallies.values():
                tally.notes["not compared with the float model, whose experts differ"] = None
        for expert, count in enumerate(counts.tolist()):
            own = None
            if count >= limit:
                own = inputs.of_expert(expert, self._solver, True, self._cross)
            statistics = shared if own is None else own
            assert statistics is not None
            largest = max(largest, statistics.largest)
            for name, writer in writers.items():
                if own is None:
                    tallies[name].notes[note] = None
                matrix = matrix_of(weights[name], expert)
                self._matrix(matrix, targets[name], statistics, writer, tallies[name])
            self._factors.forget()
        self.largest[site.x.name] = largest

    def _matrix(
        self,
        matrix: Tensor,
        encoding: Encoding,
        statistics: InputStatistics,
        writer: SpoolWriter,
        tally: _Tally,
    ) -> None:
        """Round one matrix by ranges of rows: they do not depend on each other."""
        error = rtn_error = 0.0
        known = statistics.count > 0
        for start, stop in matrix.row_ranges(CHUNK_BYTES):
            rows = np.ascontiguousarray(matrix.float32(start, stop))
            with naming(matrix.name):
                if known:
                    solved = self._algorithm(
                        rows, encoding, statistics, self._options, self._solver
                    )
                else:
                    plain = encoding.encode(rows)
                    solved = Solved(plain, 0.0, 0.0, "no token came: plain rounding")
            error, rtn_error = error + solved.error, rtn_error + solved.rtn_error
            if solved.note:
                tally.notes[solved.note] = None
            writer.add(solved.parts)
        if known:
            tally.add(error, rtn_error, statistics.count)
