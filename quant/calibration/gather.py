"""Statistics of all linear layers of a float model in one pass, kept in a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed
from halfbyte.quant.calibration.pieces import Site, cut
from halfbyte.quant.calibration.saved import SavedStatistics, statistics_file
from halfbyte.quant.calibration.statistics import Grams, InputStatistics
from halfbyte.quant.calibration.streams import Progress, SiteRows, Stream

if TYPE_CHECKING:
    from halfbyte.quant.solver import Solver


def constant_names(model: Model) -> dict[str, str]:
    """Return the names of the graph's constants by those of the model's weights."""
    by_tensor = {id(tensor): name for name, tensor in model.weights.items()}
    found: dict[str, str] = {}
    for constant, tensor in model.graph.constants.items():
        name = by_tensor.get(id(tensor), tensor.name)
        if name in model.weights:
            found.setdefault(name, constant)
    return found


def linear_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the matrices and stacks of matrices."""
    return [name for name, tensor in weights.items() if len(tensor.shape) in (2, 3)]


class SavedInputs:
    """The inputs of a site as a file has them. divisor: what they were divided by since."""

    def __init__(
        self, saved: SavedStatistics, weight: str, divisor: NDArray[np.float32] | None = None
    ) -> None:
        """Take the entry of a weight."""
        self._saved = saved
        self._weight = weight
        self._divisor = divisor

    @property
    def own_rows(self) -> bool:
        """Whether the file has nothing but each expert's own rows."""
        return self._saved.is_stack(self._weight) and not self._saved.has_shared(self._weight)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the rows of each expert."""
        return np.array(self._saved.counts(self._weight), np.int64)

    def statistics(self, solver: Grams, hessian: bool, cross: bool = False) -> InputStatistics:
        """Return the statistics of all rows."""
        divisor = self._divisor
        held = self._saved.shared(self._weight)
        return held if divisor is None or divisor.ndim > 1 else held.divided(divisor)

    def of_expert(
        self, expert: int, solver: Grams, hessian: bool, cross: bool = False
    ) -> InputStatistics | None:
        """Return the statistics of one expert's rows, None where there are none."""
        held, divisor = self._saved.get(self._weight, expert), self._divisor
        if held is None or divisor is None:
            return held
        return held.divided(divisor if divisor.ndim == 1 else divisor[expert])


def collect(
    model: Model,
    batches: Batches,
    path: Path,
    solver: Solver,
    *,
    weights: Collection[str] | None = None,
    hessian: bool = True,
    facts: Mapping[str, Any] | None = None,
    activation_limit_bytes: int = 128 << 20,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> SavedStatistics:
    """Write the statistics of all linear layers, or of those over `weights`, to a file; return it.

    hessian: the matrices too, without which only importance can be had of the file. facts: what
    the file tells of the data. `progress` takes runs of pieces done.

    Raises:
        HalfbyteError: inputs of a layer are not finite, or an input of the model is missing.
    """
    names = constant_names(model)
    asked = linear_weights(model.weights) if weights is None else weights
    wanted = {names[name]: name for name in asked if name in names}
    whole = cut(model.graph, wanted)
    runs = completed(batches, model.graph)
    told = {"samples": runs.samples, **(facts or {})}
    with (
        ActivationStore(activation_limit_bytes, path.parent) as store,
        statistics_file(path, model, told) as writer,
    ):
        stream = Stream(runs, store, device, threads)
        for piece in whole.pieces:
            stream.advance(piece, progress)
            for site in piece.sites:
                rows = SiteRows(site, stream)
                keys = [wanted[name] for name in site.weights]
                writer.add(keys, *_statistics_of(site, rows, solver, hessian))
            stream.release(piece)
    return SavedStatistics(path)


def _statistics_of(
    site: Site, rows: SiteRows, solver: Grams, hessian: bool
) -> tuple[InputStatistics | list[InputStatistics | None], InputStatistics | None]:
    """Return the statistics of a site and, of experts that read the same rows, of all rows."""
    if site.experts is None:
        return rows.statistics(solver, hessian), None
    experts = [rows.of_expert(number, solver, hessian) for number in range(site.matrices)]
    return experts, None if rows.own_rows else rows.statistics(solver, hessian)
