"""A model running over all batches piece by piece, and the rows that its linear layers meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.passes import RUNTIME, run_passes
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches
from halfbyte.quant.calibration.pieces import Piece, Site
from halfbyte.quant.calibration.statistics import Gathering, Grams, InputStatistics
from halfbyte.runtime.session import Session

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Progress = Callable[[int], None]

DECODED_BYTES = 64 << 20  # of the matrices of a piece that are held as float32
# Gates stay apart from their products, which packed float32 matrices do faster.
PASSES = tuple(name for name in RUNTIME if name != "fuse_linear_swiglu")


@dataclass(eq=False)
class Stream:
    """One run of a model: its weights as they are now, and the values that later pieces read.

    weights: tensors that take the place of the graph's own, by name of the constant. decode: hold
    the matrices of a piece as float32 while it runs, if they are few, for the fastest product.
    """

    batches: Batches
    store: ActivationStore
    device: str = "cpu"
    threads: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    decode: bool = True

    def advance(self, piece: Piece, progress: Progress | None = None) -> None:
        """Run a piece over all batches; its weights are let go of afterwards.

        What nobody reads after a run of it, its sites neither, is forgotten at once.
        """
        if not piece.graph.outputs:
            return
        graph = piece.graph.copy()
        for name in graph.constants:
            if name in self.weights:
                graph.set_constant(name, self.weights[name])
        plain = self.decode and _decode_matrices(graph)
        if plain:
            run_passes(graph, PASSES)
        session = Session(graph, self.device, threads=self.threads, fuse=not plain)
        aims = {value.name for site in piece.sites for value in site.read}
        ended = [name for name in piece.drops if name not in aims]
        for number in range(len(self.batches.runs)):
            session.reset()
            results = session.run({v.name: self.value(v.name, number) for v in graph.inputs})
            for name in ended:
                self.store.free_run(name, number)
            for name, array in results.items():
                self.store.put(name, number, array)
            if progress is not None:
                progress(1)

    def value(self, name: str, run: int) -> Any:
        """Return a value of a run: an input, or what a piece made."""
        if self.store.has(name):
            return self.store.get(name, run)
        return self.batches.runs[run][name]

    def release(self, piece: Piece) -> None:
        """Forget what no later piece reads."""
        for name in piece.drops:
            self.store.free(name)


def _decode_matrices(graph: Graph) -> bool:
    """Exchange the weights of a graph's Linear nodes for float32 ones, if these are not many."""
    read = [node.inputs[1] for node in graph.nodes if node.op == "Linear" and node.domain]
    held = {value.name: value.constant for value in read if value and value.constant}
    if sum(4 * tensor.size for tensor in held.values()) > DECODED_BYTES:
        return False
    for name, tensor in held.items():
        if tensor.encoding.name != "float32" and tensor.encoding.can_decode:
            values = tensor.float32().reshape(tensor.shape)
            graph.set_constant(name, tensor_from_array(tensor.name, values))
    return True


@dataclass(eq=False)
class SiteRows:
    """The rows that meet the weights of a site, of one stream or of two side by side."""

    site: Site
    stream: Stream
    beside: Stream | None = None

    @property
    def where(self) -> str:
        """Return the weight that errors name."""
        return self.site.weights[0]

    @property
    def own_rows(self) -> bool:
        """Whether each row meets one expert of its own: inputs of an expert's second product."""
        return self._places.own

    def statistics(self, solver: Grams, hessian: bool, cross: bool = False) -> InputStatistics:
        """Return the statistics of all rows; of a stack, each row counts once."""
        made = Gathering(self.site.columns, solver, hessian=hessian, cross=cross, where=self.where)
        for number in range(len(self.stream.batches.runs)):
            kept = self._places.kept[number]
            made.add(*(rows if kept is None else rows[kept] for rows in self._rows(number, cross)))
        return made.finish()

    def of_expert(
        self, expert: int, solver: Grams, hessian: bool, cross: bool = False
    ) -> InputStatistics | None:
        """Return the statistics of the rows sent to one expert, None where there are none."""
        places = self._places.of(expert)
        if not any(len(rows) for rows in places):
            return None
        made = Gathering(self.site.columns, solver, hessian=hessian, cross=cross, where=self.where)
        for number, chosen in enumerate(places):
            if len(chosen):
                made.add(*(rows[chosen] for rows in self._rows(number, cross)))
        return made.finish()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return how many rows each expert has."""
        return self._places.counts

    def sample(self, run: int) -> NDArray[np.float32]:
        """Return the rows of one run that count."""
        kept = self._places.kept[run]
        (rows,) = self._rows(run, False)
        return rows if kept is None else np.asarray(rows[kept])

    def _rows(self, run: int, both: bool) -> list[NDArray[np.float32]]:
        name = self.site.x.name
        streams = [self.stream]
        if both:
            # The float model may send a token to other experts: their rows are not alike.
            streams.append(self.stream if self.beside is None or self.own_rows else self.beside)
        found = [np.asarray(stream.value(name, run)) for stream in streams]
        return [x.reshape(-1, x.shape[-1]).astype(np.float32, copy=False) for x in found]

    @cached_property
    def _places(self) -> _Places:
        found = _Places(self.site.matrices)
        for number in range(len(self.stream.batches.runs)):
            x = np.asarray(self.stream.value(self.site.x.name, number))
            mask = rows_that_count(x.shape[:-1], self.stream.batches.masks[number])
            experts = self.site.experts
            found.add(x.shape[:-1], mask, self._chosen(experts, number))
        return found

    def _chosen(self, experts: Value | None, run: int) -> Array | None:
        return None if experts is None else np.asarray(self.stream.value(experts.name, run))


def rows_that_count(leading: tuple[int, ...], mask: Mask | None) -> Mask | None:
    """Return bool [rows] for rows of shape `leading`, None where all count.

    A mask [sequences, length] concerns values that begin with these two dimensions; one of a single
    sequence also those without the first.
    """
    if mask is None:
        return None
    if leading[: mask.ndim] == mask.shape:
        shaped = mask.reshape(mask.shape + (1,) * (len(leading) - mask.ndim))
        return np.broadcast_to(shaped, leading).reshape(-1)
    if mask.size == int(np.prod(leading)):
        return mask.reshape(-1)
    return None


@dataclass(eq=False)
class _Places:
    """Which rows of each run count, and which go to which expert."""

    matrices: int
    kept: list[Mask | None] = field(default_factory=list)
    own: bool = False
    _order: list[NDArray[np.int64]] = field(default_factory=list)
    _ends: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, leading: tuple[int, ...], mask: Mask | None, chosen: Array | None) -> None:
        """Take a run; chosen: [..., used] experts of its rows."""
        self.kept.append(mask)
        if chosen is None:
            return
        self.own = leading == chosen.shape
        used = 1 if self.own else chosen.shape[-1]
        flat = chosen.reshape(-1)
        order = np.argsort(flat, kind="stable")
        if mask is not None:
            order = order[mask[order // used]]
        self._order.append((order // used).astype(np.int64))
        self._ends.append(np.cumsum(np.bincount(flat[order], minlength=self.matrices)))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the rows of each expert over all runs."""
        total = np.zeros(self.matrices, np.int64)
        for ends in self._ends:
            total += np.diff(ends, prepend=0)
        return total

    def of(self, expert: int) -> list[NDArray[np.int64]]:
        """Return the rows of each run that go to an expert, in order."""
        return [
            order[(ends[expert - 1] if expert else 0) : ends[expert]]
            for order, ends in zip(self._order, self._ends, strict=True)
        ]
