"""A graph over QuantizeLinear and DequantizeLinear: pairs at activations, codes for weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.spec import UNKNOWN, Array, input_at
from halfbyte.ir.passes.quantized_values import clip_limits
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.qdq_placement import Placement
from halfbyte.quant.qdq_presets import Preset
from halfbyte.quant.qdq_weights import Codes, bias_codes

ROUNDING = 1e-6


class Grid(NamedTuple):
    """Scale and zero point of an activation."""

    scale: np.float32
    zero: int


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with weights as codes. bias: in real units, one for each channel."""

    node: Node
    weight: Codes
    bias: NDArray[np.float64] | None


@dataclass
class Rewritten:
    """A graph in the QDQ form.

    results: what each integer operator gives, by the name of its result before. weights: the
    encodings that weights had, by the names of their codes.
    """

    graph: Graph
    results: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


def grid_of(low: float, high: float, preset: Preset) -> Grid:
    """Return the grid over a range that holds zero."""
    if preset.symmetric:
        scale = np.float32(max(-low, high) / preset.highest)
    else:
        scale = np.float32((high - low) / (preset.highest - preset.lowest))
    if not scale or not np.isfinite(scale):
        return Grid(np.float32(1.0), 0 if preset.symmetric else preset.lowest)
    if preset.symmetric:
        return Grid(scale, 0)
    zero = round(preset.lowest - low / float(scale))
    return Grid(scale, min(max(zero, preset.lowest), preset.highest))


class Rewriter:
    """Puts pairs and codes into a copy of a graph."""

    def __init__(
        self, graph: Graph, placement: Placement, grids: Mapping[Value, Grid], preset: Preset
    ) -> None:
        """Take what was decided; grids: by the leader of each group of `placement`."""
        self.graph = graph.copy()
        self.placement = placement
        self.preset = preset
        self.grids = {v: grids[placement.leader(v)] for v in placement.values}
        self.values = {value.name: value for value in self.graph.values()}
        self.twins = dict(zip(graph.nodes, self.graph.nodes, strict=True))
        self._constants: dict[tuple[str, bytes, str], Value] = {}
        self._weights: dict[tuple[object, ...], Value] = {}
        self._flat: dict[Value, Value] = {}
        self.codes: dict[str, Value] = {}

    def constant(self, stem: str, array: Array) -> Value:
        """Return a constant; equal ones of one stem are one."""
        key = stem, array.tobytes(), f"{array.dtype}{array.shape}"
        if key not in self._constants:
            self._constants[key] = self.stored(stem, array)
        return self._constants[key]

    def stored(self, stem: str, array: Array) -> Value:
        """Return a new constant that is read in its own dtype."""
        value = self.graph.add_constant(tensor_from_array(stem, array), stem, fixed=True)
        assert value.constant is not None
        self.graph.set_constant(value.name, value.constant.renamed(value.name))
        return value

    def add(
        self, op: str, inputs: list[Value | None], name: str, like: Value, before: Node | None
    ) -> Value:
        """Insert an ai.onnx node with one output of the shape of `like`."""
        out = Value(self.graph.fresh_name(name), "float32", like.shape)
        if op == "QuantizeLinear":
            out.dtype = self.preset.activations
        version = max(op_spec(op).versions)
        self.graph.insert(Node(op, inputs, [out], {}, "", version), before)
        return out

    def quantize_values(self) -> None:
        """Put a pair behind every quantized value and let its readers read it."""
        for value in self.placement.values:
            self._pair(value)

    def _pair(self, value: Value) -> None:
        twin, grid = self.values[value.name], self.grids[value]
        uses = self._readers(value, twin)
        source, end = twin, self.placement.ends.get(value)
        if end is not None and self._clips(grid, end):
            held = self.twins[end].inputs[0]
            assert held is not None
            source = held
        scale = self.constant(f"{value.name}.scale", np.asarray(grid.scale, np.float32))
        dtype = np.dtype(self.preset.activations)
        zero = self.constant(f"{value.name}.zero_point", np.asarray(grid.zero, dtype))
        before = self._after(twin)
        stem = f"{value.name}.quantized"
        data = self.add("QuantizeLinear", [source, scale, zero], stem, twin, before)
        stem = f"{value.name}.dequantized"
        result = self.add("DequantizeLinear", [data, scale, zero], stem, twin, before)
        for node, index in uses:
            self.graph.set_input(node, index, result)
        if value in self.placement.made:
            self.graph.outputs = [result if v is twin else v for v in self.graph.outputs]
        if end is not None and source is not twin and twin.producer is self.twins[end]:
            self.graph.remove(self.twins[end])

    def _readers(self, value: Value, twin: Value) -> list[tuple[Node, int]]:
        if value in self.placement.made:
            return list(twin.uses)
        integers = {self.twins[node] for node in self.placement.nodes}
        passing = {self.twins[node] for node in self.placement.passing}
        return [
            (node, i) for node, i in twin.uses if (node in integers and i == 0) or node in passing
        ]

    def _clips(self, grid: Grid, end: Node) -> bool:
        """Whether the ends of the grid do what a Relu or Clip does."""
        limits = clip_limits(end)
        if limits is None:
            return False
        low = (self.preset.lowest - grid.zero) * float(grid.scale)
        high = (self.preset.highest - grid.zero) * float(grid.scale)
        room = ROUNDING * (high - low)
        return low >= limits[0] - room and high <= limits[1] + room

    def _after(self, value: Value) -> Node | None:
        """Return the node before which something stands directly behind a value."""
        place = 0 if value.producer is None else self.graph.position(value.producer) + 1
        return self.graph.nodes[place] if place < len(self.graph.nodes) else None

    def weight(self, layer: Layer, turned: bool) -> Value:
        """Return a dequantized weight; axis 0, or 1 where it is turned, has a scale per index."""
        held = layer.node.inputs[1]
        assert held is not None
        content = layer.weight.scale.tobytes(), layer.weight.codes.tobytes()
        key = held.name, turned, content
        if key in self._weights:
            return self._weights[key]
        codes = layer.weight.codes.T if turned else layer.weight.codes
        data = self.stored(f"{held.name}.codes", np.ascontiguousarray(codes))
        scale = self.stored(f"{held.name}.scales", layer.weight.scale)
        zeros = np.zeros(len(layer.weight.scale), np.int8)
        zero = self.stored(f"{held.name}.zero_points", zeros)
        first, stem = self.graph.nodes[0], f"{held.name}.dequantized"
        made = self.add("DequantizeLinear", [data, scale, zero], stem, data, first)
        self.codes[data.name] = held
        assert made.producer is not None
        made.producer.attributes["axis"] = int(turned)
        self._weights[key] = made
        return made

    def bias(self, layer: Layer, grid: Grid) -> Value | None:
        """Return the bias as int32 codes that are dequantized."""
        if layer.bias is None:
            return None
        given = input_at(layer.node, 2)
        stem = f"{layer.node.outputs[0].name}.bias" if given is None else given.name
        scale = (layer.weight.scale * grid.scale).astype(np.float32)
        codes = self.stored(f"{stem}.codes", bias_codes(layer.bias, scale))
        scales = self.stored(f"{stem}.scales", scale)
        zeros = self.stored(f"{stem}.zero_points", np.zeros(len(scale), np.int32))
        first, stem = self.graph.nodes[0], f"{stem}.dequantized"
        made = self.add("DequantizeLinear", [codes, scales, zeros], stem, codes, first)
        assert made.producer is not None
        made.producer.attributes["axis"] = 0
        return made

    def rewrite_layer(self, layer: Layer) -> Value:
        """Let a Conv or Linear read codes, return its result.

        A Linear becomes Gemm, or MatMul and Add where the rows cannot be counted beforehand.
        """
        node, data = self.twins[layer.node], layer.node.inputs[0]
        assert data is not None
        grid = self.grids[data]
        if node.op == "Conv":
            self.graph.set_input(node, 1, self.weight(layer, turned=False))
            bias = self.bias(layer, grid)
            if bias is not None and len(node.inputs) < 3:
                node.inputs.append(None)
            if bias is not None:
                self.graph.set_input(node, 2, bias)
            return node.outputs[0]
        old, weight = node.outputs[0], self.weight(layer, turned=True)
        rows = _flat_form(old)
        reads = node.inputs[0]
        assert reads is not None
        if rows is None:
            new = self._product(layer, node, reads, weight)
        else:
            bias = self.bias(layer, grid)
            width = layer.weight.codes.shape[1]
            flat = reads if len(rows) == 2 else self._flattened(reads, width)
            inputs: list[Value | None] = [flat, weight, *([] if bias is None else [bias])]
            new = self.add("Gemm", inputs, old.name, old, node)
            if len(rows) > 2:
                new.shape = (UNKNOWN, rows[-1])
                shape = self.constant("rows", np.asarray(rows, np.int64))
                new = self.add("Reshape", [new, shape], old.name, old, node)
        self.graph.replace_all_uses(old, new)
        self.graph.remove(node)
        new.name, old.name = old.name, new.name
        return new

    def _product(self, layer: Layer, node: Node, reads: Value, weight: Value) -> Value:
        """Return MatMul and Add in the place of a Linear."""
        old = node.outputs[0]
        new = self.add("MatMul", [reads, weight], f"{old.name}.product", old, node)
        if layer.bias is None:
            return new
        row = self.stored(f"{old.name}.bias", layer.bias.astype(np.float32))
        return self.add("Add", [new, row], old.name, old, node)

    def _flattened(self, reads: Value, width: int) -> Value:
        """Return a dequantized value as a matrix: its codes are reshaped."""
        if reads not in self._flat:
            back = reads.producer
            assert back is not None and back.inputs[0] is not None
            data, scale, zero = back.inputs
            shape = self.constant("matrix", np.asarray([-1, width], np.int64))
            place = self._after(reads)
            flat = self.add("Reshape", [data, shape], f"{reads.name}.matrix", reads, place)
            flat.shape, flat.dtype = (UNKNOWN, width), self.preset.activations
            made = self.add("DequantizeLinear", [flat, scale, zero], reads.name, flat, place)
            self._flat[reads] = made
        return self._flat[reads]


def _flat_form(value: Value) -> list[int] | None:
    """Return what a matrix is reshaped to so that it has the shape of a value, None if unknown."""
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape or ()]
    return None if len(dims) < 2 or dims.count(-1) > (len(dims) > 2) else dims


def rewritten(
    graph: Graph,
    placement: Placement,
    grids: Mapping[Value, Grid],
    layers: list[Layer],
    preset: Preset,
) -> Rewritten:
    """Return a copy of the graph in the QDQ form; the names of results stay.

    grids: by the leader of each group. layers: one for each of `placement.nodes`.
    """
    rewriter = Rewriter(graph, placement, grids, preset)
    rewriter.quantize_values()
    results: dict[str, Value] = {}
    for layer in layers:
        results[layer.node.outputs[0].name] = rewriter.rewrite_layer(layer)
    made = rewriter.graph
    for name in list(made.constants):
        value = made.constant_value(name)
        if not value.uses and value not in made.outputs:
            made.remove_constant(name)
    _keep_output_names(graph, made)
    return Rewritten(made, results, _name_codes(made, rewriter.codes))


def _name_codes(graph: Graph, codes: Mapping[str, Value]) -> dict[str, str]:
    """Give codes the names that their weights had, where these are free."""
    names, encodings = {}, {}
    for name, weight in codes.items():
        assert weight.constant is not None
        is_free = weight.name not in graph.constants and weight.name not in encodings
        new = weight.name if is_free else name
        names[name], encodings[new] = new, str(weight.constant.encoding)
    graph.rename_constants(names)
    for new in encodings:
        graph.set_constant(new, graph.constants[new].renamed(new))
    return encodings


def _keep_output_names(before: Graph, after: Graph) -> None:
    """Give the outputs the names that they had."""
    for old, new in zip(before.outputs, after.outputs, strict=True):
        if new.name == old.name or new.producer is None:
            continue
        for value in after.values():
            if value.name == old.name:
                value.name = after.fresh_name(f"{old.name}.float")
        new.name = old.name
