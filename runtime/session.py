"""Run a graph on arrays by name, keeping its states between runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.ir.dtypes import FLOATING, INTEGERS, dtype_of, numpy_dtype
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.ops.spec import ValueType
from halfbyte.ir.passes import run_passes
from halfbyte.runtime import get_backend
from halfbyte.runtime.backend import WeightStore
from halfbyte.runtime.compile import Plan, compile_plan
from halfbyte.runtime.kv_cache import KvCache
from halfbyte.runtime.observation import Observer
from halfbyte.runtime.stages import kind_of
from halfbyte.runtime.subgraphs import SubgraphRunner, copied

Array = NDArray[Any]
KEPT_PLANS = 4
TOKEN_IDS = "input_ids"
POSITIONS = "position_ids"
OUTPUTS = "output_positions"
# Inputs that may not be negative; other inputs of Gather count from the end where they are.
INDICES = frozenset({TOKEN_IDS, POSITIONS, OUTPUTS, "token_type_ids"})


class Session:
    """A graph on a device, with its weights and states.

    source: a Model, a Graph, or a path that `halfbyte.open` takes. device: a name in BACKENDS.
    compute: `exact` (float32 activations) or `int8` (rounded where weights are quantized).
    capacity: positions the states hold; None grows as needed. fuse: merge nodes for speed.
    observer: sees what meets the weights of linear layers, by the constants' names.
    """

    def __init__(
        self,
        source: Model | Graph | str | Path,
        device: str = "cpu",
        *,
        compute: str = "exact",
        threads: int | None = None,
        capacity: int | None = None,
        fuse: bool = True,
        observer: Observer | None = None,
    ) -> None:
        """Prepare the graph; weights are touched when a run first needs them.

        Raises:
            BackendError: the device cannot be used here.
            GraphError: the graph breaks a rule.
        """
        self.backend = get_backend(device, compute, threads)
        self.threads = threads
        self.graph = _graph_of(source).copy()
        if fuse:
            run_passes(self.graph)
        self.cache = KvCache(self.graph.states, capacity)
        self.weights = WeightStore(self.backend)
        self._compile = partial(compile_plan, observer=observer)
        self._runner = SubgraphRunner(self.backend, self.weights, self._compile)
        self.history: list[int] | None = []
        self._inputs = {value.name: value for value in self.graph.inputs}
        self._limits = index_limits(self.graph)
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    @property
    def position(self) -> int:
        """Return how many positions the states hold."""
        return self.cache.position

    @property
    def position_limit(self) -> int | None:
        """Return how many positions fit the states and the model's position table."""
        limits = (self.cache.limit, self._limits.get(POSITIONS))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def vocabulary_size(self) -> int | None:
        """Return the number of token ids, None for a graph without them."""
        return self._limits.get(TOKEN_IDS)

    @property
    def fallbacks(self) -> list[str]:
        """Return the nodes that ran without a kernel of the device in the latest plan."""
        return next(reversed(self._plans.values())).every_fallback() if self._plans else []

    def reset(self) -> None:
        """Forget all positions; memory is kept."""
        self.truncate(0)

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on.

        Raises:
            HalfbyteError: fewer positions are held.
        """
        self.cache.truncate(position)
        if position == 0:
            self.history = []
        elif self.history is not None:
            del self.history[position:]

    def keep_prefix(self, token_ids: list[int]) -> int:
        """Go back to the longest held prefix of `token_ids`; return its length.

        The last id is never counted, so that there is always one to run.
        """
        held = self.history or []
        length = 0
        for mine, asked in zip(held, token_ids[:-1], strict=False):
            if mine != asked:
                break
            length += 1
        self.truncate(length)
        return length

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the graph once; states grow by the sequence length.

        inputs: arrays by name. `position_ids`, `output_positions`, `attention_mask` and
        `token_type_ids` may be omitted. Returns new arrays by output name.

        Raises:
            HalfbyteError: names, types, shapes or ids are wrong, or the capacity is exceeded.
        """
        feeds = self._feeds(inputs)
        batch, length = self._extent(feeds)
        self.cache.reserve(batch, length)
        plan = self.plan({name: kind_of(v, self._inputs[name].dtype) for name, v in feeds.items()})
        for name, array in feeds.items():
            plan.inputs[name].fill(array)
        self.backend.begin()
        plan.run()
        results = {name: copied(slot.value()) for name, slot in plan.outputs.items()}
        if self.cache.buffers:
            self.cache.advance(length)
            self._remember(feeds)
        return results

    def plan(self, types: Mapping[str, ValueType]) -> Plan:
        """Return the plan for inputs of these types; a few recent ones are kept."""
        key = tuple(types.items())
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        made = self._compile(
            self.graph, self.backend, types, self.weights, self.cache, self._runner
        )
        self._plans[key] = made
        if len(self._plans) > KEPT_PLANS:
            self._plans.popitem(last=False)
        return made

    def _remember(self, feeds: Mapping[str, Array]) -> None:
        ids = feeds.get(TOKEN_IDS)
        if ids is None or self.history is None:
            return
        if ids.shape[0] != 1:
            self.history = None
        else:
            self.history.extend(ids[0].tolist())

    def _extent(self, feeds: Mapping[str, Array]) -> tuple[int, int]:
        ids = feeds.get(TOKEN_IDS)
        if not self.cache.buffers:
            return 1, 0
        if ids is None:
            raise HalfbyteError("session: a graph with states needs an input 'input_ids'")
        if ids.size == 0:
            raise HalfbyteError("session: input 'input_ids' is empty, at least one id was required")
        return int(ids.shape[0]), int(ids.shape[1])

    def _feeds(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown:
            raise HalfbyteError(
                f"session: no input is named {unknown[0]!r}; inputs are {', '.join(self._inputs)}"
            )
        given = {name: checked_input(self._inputs[name], array) for name, array in inputs.items()}
        feeds: dict[str, Array] = {}
        symbols: dict[str, int] = {}
        for name, value in self._inputs.items():
            feeds[name] = given[name] if name in given else self._default(value, given)
            # Files of other tools may use one symbol for different lengths.
            check_dims(value, feeds[name], symbols if self.cache.buffers else {})
            if name in self._limits:
                check_range(name, feeds[name], self._limits[name])
        if OUTPUTS in feeds and TOKEN_IDS in feeds and self.cache.buffers:
            check_range(OUTPUTS, feeds[OUTPUTS], feeds[TOKEN_IDS].shape[-1])
        return feeds

    def _default(self, value: Value, given: Mapping[str, Array]) -> Array:
        made = self._made(value.name, given.get(TOKEN_IDS))
        return converted(value, made)

    def _made(self, name: str, ids: Array | None) -> Array:
        if ids is not None and ids.ndim == 2:
            start, length = self.cache.position, ids.shape[1]
            if name == POSITIONS:
                row = np.arange(start, start + length, dtype=np.int64)
                return np.broadcast_to(row, ids.shape)
            if name == OUTPUTS:
                return np.arange(length, dtype=np.int64)
            if name == "attention_mask":
                return np.ones(ids.shape, np.int64)
            if name == "token_type_ids":
                return np.zeros(ids.shape, np.int64)
        raise HalfbyteError(
            f"session: input {name!r} is missing; inputs are {', '.join(self._inputs)}"
        )


def _graph_of(source: Model | Graph | str | Path) -> Graph:
    if isinstance(source, Graph):
        return source
    if isinstance(source, Model):
        return source.graph
    # The package's public face opens files; the runtime itself knows no formats.
    opened: Model = import_module("halfbyte").open(source)
    return opened.graph


def index_limits(graph: Graph) -> dict[str, int]:
    """Return for each language-model input that picks rows of a table how many rows there are."""
    limits: dict[str, int] = {}
    for value in graph.inputs:
        if value.name not in INDICES:
            continue
        for node, index in value.uses:
            table = node.inputs[0]
            picks = node.op == "Gather" and index == 1 and not node.attributes.get("axis", 0)
            if picks and table is not None and table.constant is not None:
                rows = table.constant.shape[0]
                limits[value.name] = min(rows, limits.get(value.name, rows))
    return limits


def checked_input(value: Value, given: Any) -> Any:
    """Return an input as array of the declared dtype; a sequence as list, an optional as it is.

    Raises:
        HalfbyteError: the rank or kind differs, or the conversion would lose values.
    """
    kind, _, rest = (value.dtype or "").partition(".")
    if kind == "optional":
        return None if given is None else checked_input(Value(value.name, rest), given)
    if kind == "sequence":
        if not isinstance(given, (list, tuple)):
            raise HalfbyteError(
                f"session: input {value.name!r} is {type(given).__name__}, a list of arrays was "
                "required"
            )
        return [checked_input(Value(value.name, rest), element) for element in given]
    array = np.asarray(given)
    if value.shape is not None and array.ndim != len(value.shape):
        raise HalfbyteError(
            f"session: input {value.name!r} has shape {list(array.shape)}, "
            f"rank {len(value.shape)} [{', '.join(map(str, value.shape))}] was required"
        )
    return converted(value, array)


def converted(value: Value, array: Array) -> Array:
    """Return an array in the declared dtype of an input.

    Raises:
        HalfbyteError: the conversion would lose values.
    """
    wanted = value.dtype or dtype_of(array)
    dtype = numpy_dtype(wanted)
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "V" and array.dtype.names is None and array.itemsize == dtype.itemsize:
        array = array.view(dtype)  # numpy's files do not know the names of ml_dtypes
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "surrogateescape")
    found = dtype_of(array)
    numbers = FLOATING if wanted in FLOATING else INTEGERS if wanted in INTEGERS else ()
    if wanted != found and array.size and found not in numbers:
        raise HalfbyteError(
            f"session: input {value.name!r} is {found}, {wanted} was required; convert it"
        )
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if wanted != found and array.size:
        _check_values(value, array, result)
    return result


def _check_values(value: Value, array: Array, result: Array) -> None:
    """Check that no integer changed and no float left the range."""
    if result.dtype.name in INTEGERS:
        lost = (result.astype(array.dtype) != array) | ((result < 0) != (array < 0))
    else:
        lost = np.isfinite(array.astype(np.float64)) & ~np.isfinite(result.astype(np.float64))
    if lost.any():
        raise HalfbyteError(
            f"session: input {value.name!r} holds {array[lost][0]}, which {result.dtype} cannot "
            "hold; give values in its range"
        )


def check_dims(value: Value, array: Array, symbols: dict[str, int]) -> None:
    """Check fixed dimensions, and that one symbol means one length in all that share `symbols`.

    Raises:
        HalfbyteError: a dimension differs.
    """
    for wanted, found in zip(value.shape or (), getattr(array, "shape", ()), strict=False):
        expected = symbols.setdefault(wanted, found) if isinstance(wanted, str) else wanted
        if wanted != "?" and expected != found:
            meant = f" with {wanted} = {expected}" if isinstance(wanted, str) else ""
            raise HalfbyteError(
                f"session: input {value.name!r} has shape {list(array.shape)}, "
                f"[{', '.join(map(str, value.shape or ()))}]{meant} was required"
            )


def check_range(name: str, array: Array, limit: int) -> None:
    """Check that indices lie in [0, limit).

    Raises:
        HalfbyteError: one does not.
    """
    # As unsigned numbers the negative ones are the largest: one look at the values.
    unsigned = array.view(f"u{array.itemsize}") if array.dtype.kind == "i" else array
    if array.size == 0 or (array.dtype.kind in "iu" and int(unsigned.max()) < limit):
        return
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        advice = "; the text is longer than the model's positions" if name == POSITIONS else ""
        raise HalfbyteError(
            f"session: input {name!r} holds {bad}, 0 to {limit - 1} was required{advice}"
        )
