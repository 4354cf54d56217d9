"""Activations and weights as 8-bit integers: a graph with QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.ops.spec import input_at
from halfbyte.ir.passes import run_passes
from halfbyte.quant.calibration.observation import observe_values, samples_of
from halfbyte.quant.calibration.ranges import Rule, check_method, chosen_range
from halfbyte.quant.qdq_correction import corrected
from halfbyte.quant.qdq_placement import place
from halfbyte.quant.qdq_presets import get_preset
from halfbyte.quant.qdq_rewrite import Layer, grid_of, rewritten
from halfbyte.quant.qdq_weights import least_scale, weight_codes

MODES = ("int8-static", "int8-dynamic")
# Norms go into the weights of convolutions, and what stays float gets its short form.
PREPARED = (
    *("constant_folding", "simplify", "common_subexpressions", "fold_pad", "fold_batch_norm"),
    *("fuse_layer_norm", "fuse_gelu", "dead_code"),
)


@dataclass(frozen=True)
class ActivationOptions:
    """How activations are quantized.

    mode: a name in MODES. method: how ranges are cut (METHODS of `calibration/ranges.py`).
    preset: a name in PRESETS. keep_float: globs of nodes that stay float, `first` and `last` too.
    correct_bias: fold each layer's mean error on the calibration inputs into its bias.
    """

    mode: str = "int8-static"
    method: str = "mse"
    preset: str = "x86"
    percentile: float = 99.999
    keep_float: Sequence[str] = ()
    correct_bias: bool = True
    threads: int | None = None


def prepared_graph(model: Model) -> Graph:
    """Return a copy of the model's graph in which placement finds what it looks for."""
    graph = model.graph.copy()
    run_passes(graph, PREPARED)
    infer_types(graph)
    return graph


def static_graph(
    graph: Graph, samples: list[Mapping[str, NDArray[Any]]], options: ActivationOptions
) -> Graph:
    preset = get_preset(options.preset)
    check_method(options.method)
    placement = place(graph, options.keep_float)
    if not placement.nodes:
        raise UnsupportedError("int8-static", graph.name, advice="no Conv or MatMul has weights")
    observed = observe_values(graph, placement.values, samples, options.threads)
    rule = Rule(options.method, options.percentile, preset.highest - preset.lowest, preset.symmetric)
    grids = {}
    for leader, members in placement.groups().items():
        low, high = chosen_range([observed[value] for value in members], rule)
        grids[leader] = grid_of(low, high, preset)
    layers = []
    for node in placement.nodes:
        weight, bias = node.inputs[1], input_at(node, 2)
        data = node.inputs[0]
        assert weight is not None and weight.constant is not None and data is not None
        values = np.asarray(weight.constant.numpy(), np.float32)
        scale = float(grids[placement.leader(data)].scale)
        given = None
        least = None
        if bias is not None and bias.constant is not None:
            given = np.asarray(bias.constant.numpy(), np.float64).reshape(-1)
            least = least_scale(given.astype(np.float32), scale)
        layers.append(
            Layer(node, weight_codes(weight.name, values, preset.weight_limit, least), given)
        )
    made = rewritten(graph, placement, grids, layers, preset)
    if options.correct_bias:
        layers = corrected(graph, made, layers, samples, options.threads)
        made = rewritten(graph, placement, grids, layers, preset)
    return made.graph
