"""Activations and weights as 8-bit integers: a graph with QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.model import Model
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.ops.spec import attribute, input_at
from halfbyte.ir.passes import run_passes
from halfbyte.ir.profile import stays_float
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.calibration.batches import Batches, completed
from halfbyte.quant.calibration.observation import observe_values, samples_of
from halfbyte.quant.calibration.ranges import Rule, check_method, chosen_range
from halfbyte.quant.qdq_correction import corrected
from halfbyte.quant.qdq_placement import Placement, place
from halfbyte.quant.qdq_presets import Preset, get_preset
from halfbyte.quant.qdq_rewrite import Grid, Layer, grid_of, rewritten
from halfbyte.quant.qdq_weights import least_scale, weight_codes

STATIC, DYNAMIC = MODES = ("int8-static", "int8-dynamic")
# Norms go into the weights of convolutions, and what stays float gets its short form.
PREPARED = (
    *("constant_folding", "simplify", "common_subexpressions", "fold_pad", "fold_batch_norm"),
    *("fuse_layer_norm", "fuse_gelu", "dead_code"),
)
# Biases are corrected on so many samples, whose values between layers are held in memory.
CORRECTION_SAMPLES = 32
TABLE_ROWS = 64

Samples = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class ActivationOptions:
    """How activations are quantized.

    method: how ranges are cut (METHODS of `calibration/ranges.py`). percentile: what the method of
    that name keeps. preset: a name in PRESETS. keep_float: globs over the operators, names and
    results of nodes that stay float; `first` and `last` too. correct_bias: fold each layer's mean
    error on the calibration inputs into its bias.
    """

    method: str = "mse"
    percentile: float = 99.999
    preset: str = "x86"
    keep_float: Sequence[str] = ()
    correct_bias: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class ActivationReport:
    """What was quantized: nodes that compute in integers, values between them, samples seen.

    weights: the encodings that weights had before, by name.
    """

    layers: int
    kept: int
    passing: int
    values: int
    samples: int
    weights: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line for a person."""
        kept = f", {self.kept} kept float" if self.kept else ""
        return (
            f"activations: {self.layers} layers compute in integers{kept}; "
            f"{self.values} values quantized from {self.samples} samples"
        )


def prepared_graph(model: Model) -> Graph:
    """Return a copy of the model's graph in which placement finds what it looks for."""
    graph = model.graph.copy()
    run_passes(graph, PREPARED)
    infer_types(graph)
    return graph


def quantize_activations(
    model: Model,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: ActivationOptions | None = None,
) -> tuple[Model, ActivationReport]:
    """Return the model in the QDQ form, with ranges from running it on `batches`.

    batches: inputs by name. The graph is the one that the model's file holds, if it holds one; its
    outputs keep their names. Weights become int8 constants, one scale for each output channel.

    Raises:
        UnsupportedError: the graph keeps a cache, or has no layer with weights; a name is unknown.
        QuantizationError: no sample, or one leads to NaN or infinite values.
        HalfbyteError: an input does not fit the graph.
    """
    chosen = options or ActivationOptions()
    owner = model.over_stored_graph()
    if owner.graph.states:
        where = model.provenance.source or "model"
        advice = "use --activations int8-dynamic"
        raise UnsupportedError("int8-static of a graph with a cache", where, advice=advice)
    graph = prepared_graph(owner)
    runs = tuple(samples_of(graph, batches))
    samples = completed(Batches(runs, (None,) * len(runs)), graph).runs
    made, report = static_graph(graph, samples, chosen)
    quantize_tables(made, chosen.keep_float)
    weights: dict[str, Tensor] = {}
    for part in (made, *made.subgraphs()):
        weights |= {tensor.name: tensor for tensor in part.constants.values()}
    # Without the config, writers take the graph as it stands and do not build their own.
    result = replace(
        owner, weights=weights, config={}, build=lambda _: made.copy(), stored_graph=None, _graph=[]
    )
    return result, report


def quantize_tables(graph: Graph, keep_float: Sequence[str] = ()) -> None:
    """Give float tables that only lookups read one scale for each row, in place."""
    for name, tensor in graph.constants.items():
        value = graph.constant_value(name)
        lookups = [n.op == "Gather" and not n.domain and i == 0 for n, i in value.uses]
        dense = isinstance(tensor.encoding, Dense) and tensor.encoding.dtype_name == "float32"
        if not (dense and lookups and all(lookups)) or value in graph.outputs:
            continue
        if stays_float(tensor):
            continue
        whole = not any(attribute(node, "axis", 0) for node, _ in value.uses)
        kept = any(fnmatchcase(n, p) for n in (name, "Gather") for p in keep_float)
        if len(tensor.shape) == 2 and tensor.rows >= TABLE_ROWS and whole and not kept:
            graph.set_constant(name, requantize(tensor, encoding_from_name("int8")))
            value.fixed = False


def static_graph(
    graph: Graph, samples: Samples, options: ActivationOptions
) -> tuple[Graph, ActivationReport]:
    """Return the QDQ form of a prepared graph.

    Raises:
        UnsupportedError: nothing can be quantized, or a name is unknown.
        QuantizationError: no sample, or one leads to NaN or infinite values.
    """
    preset = get_preset(options.preset)
    check_method(options.method)
    placement = place(graph, options.keep_float)
    if not placement.nodes:
        advice = "convolutions and products with stored weights are needed that are not kept float"
        raise UnsupportedError("int8-static without a layer", graph.name, advice=advice)
    grids = value_grids(graph, placement, samples, options, preset)
    layers = [
        integer_layer(node, grids[placement.leader(node_data(node))], preset)
        for node in placement.nodes
    ]
    made = rewritten(graph, placement, grids, layers, preset)
    if options.correct_bias:
        seen = samples[:CORRECTION_SAMPLES]
        layers = corrected(graph, made, layers, seen, options.threads)
        made = rewritten(graph, placement, grids, layers, preset)
    count = len(placement.nodes)
    report = ActivationReport(
        count,
        placement.kept,
        len(placement.passing),
        len(placement.values),
        len(samples),
        made.weights,
    )
    return made.graph, report


def value_grids(
    graph: Graph,
    placement: Placement,
    samples: Samples,
    options: ActivationOptions,
    preset: Preset,
) -> dict[Value, Grid]:
    """Return scale and zero point for each group of values, by its leader."""
    observed = observe_values(graph, placement.values, samples, options.threads)
    levels = preset.highest - preset.lowest
    rule = Rule(options.method, options.percentile, levels, preset.symmetric)
    return {
        leader: grid_of(*chosen_range([observed[value] for value in members], rule), preset)
        for leader, members in placement.groups().items()
    }


def node_data(node: Node) -> Value:
    """Return the activation that a layer reads."""
    data = node.inputs[0]
    assert data is not None
    return data


def integer_layer(node: Node, grid: Grid, preset: Preset) -> Layer:
    """Return the codes of a layer's weights, wide enough that its biases fit 32 bits.

    Raises:
        QuantizationError: a weight is NaN or infinite.
    """
    weight, bias = node.inputs[1], input_at(node, 2)
    assert weight is not None and weight.constant is not None
    values = np.asarray(weight.constant.numpy(), np.float32)
    given = least = None
    if bias is not None and bias.constant is not None:
        given = np.asarray(bias.constant.numpy(), np.float64).reshape(-1)
        least = least_scale(given, float(grid.scale))
    return Layer(node, weight_codes(weight.name, values, preset.weight_limit, least), given)
