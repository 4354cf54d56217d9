"""Activations rounded as a checkpoint declares, for measuring what a server would compute.

Servers round the inputs of quantized linear layers to 8 bits, each token by its own largest value:
max|x| / 127 for int8, max|x| / 448 for float8 (e4m3). Here the codes are multiplied back at once,
so the products are exact and only the rounding counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import UnsupportedError
from halfbyte.ir.activation_scheme import ACTIVATIONS, fits_inputs
from halfbyte.ir.encodings.float8 import Float8
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor, tensor_from_array

MODES = ("float", "declared")
REACH = {"int": 127.0, "float": 448.0}
INT8 = {"lowest": -128, "highest": 127}
NAMES = {"int": "int8", "float": "float8"}
LINEARS = ("Linear", "ExpertLinear")
SMALLEST = float(np.finfo(np.float32).tiny)  # a scale for tokens that are all zero


def declared(model: Model) -> Mapping[str, Any] | None:
    """Return what a model's container says of the inputs of its linear layers, None for nothing."""
    said = model.metadata.get(ACTIVATIONS)
    inputs = said.get("input_activations") if isinstance(said, dict) else None
    return inputs if isinstance(inputs, dict) else None


def described(inputs: Mapping[str, Any]) -> str:
    """Return a declaration in words: `int8 activations, one scale for each token`."""
    kind = _kind(inputs)
    if kind:
        return f"{NAMES[kind]} activations, one scale for each token"
    when = "ranges found while it runs" if inputs.get("dynamic") else "stored ranges"
    bits, form = inputs.get("num_bits"), inputs.get("type", "int")
    return f"activations of {bits} bits ({form}, by {inputs.get('strategy')}, {when})"


def _kind(inputs: Mapping[str, Any]) -> str:
    """Return `int` or `float` for what `with_declared` can do, else nothing."""
    kind = str(inputs.get("type", "int"))
    by_token = inputs.get("strategy") == "token" and inputs.get("dynamic") is True
    fits = by_token and inputs.get("num_bits") == 8 and inputs.get("symmetric", True) is True
    return kind if fits and kind in REACH else ""


def activation_notes(models: Sequence[Model], mode: str, compute: str) -> tuple[str, ...]:
    """Return what a verification says of activations that models declare. mode: in MODES.

    compute: the session's, `int8` rounds by 32 columns.

    Raises:
        UnsupportedError: the mode is unknown, or no model declares any.
    """
    if mode not in MODES:
        raise UnsupportedError(f"activations {mode!r}", "verify", MODES)
    notes = []
    for model in models:
        inputs = declared(model)
        if inputs is None:
            continue
        source = model.provenance.source or "model"
        done = "rounded so here"
        if mode == "float":
            done = "float here: weights alone are judged"
            done = done if compute == "exact" else "rounded by 32 columns here"
            done += "; --activations declared rounds them so" if _kind(inputs) else ""
        notes.append(f"{source}: declares {described(inputs)}; {done}")
    if mode == "declared" and compute != "exact":
        advice = "leave out --compute: products of what is rounded are then exact"
        raise UnsupportedError(
            f"--activations declared with --compute {compute}", "verify", advice=advice
        )
    if mode == "declared" and not notes:
        advice = "leave it out, or verify a folder of compressed-tensors that has them"
        what = "--activations declared of models that declare none"
        raise UnsupportedError(what, "verify", advice=advice)
    return tuple(notes)


def with_declared(model: Model) -> Model:
    """Return the model over a graph that rounds activations as declared; itself if nothing is.

    Raises:
        UnsupportedError: they have stored ranges, or another form than 8 bits by token.
    """
    inputs = declared(model)
    if inputs is None:
        return model
    kind = _kind(inputs)
    if not kind:
        advice = "leave out --activations: weights alone are then measured"
        source = model.provenance.source or "model"
        known = ["8 bits, symmetric, dynamic, by token"]
        raise UnsupportedError(described(inputs), source, known, advice)
    graph = model.graph.copy()
    round_inputs(graph, kind)
    # A graph that is given is taken as it stands.
    return replace(model, build=lambda _: graph, stored_graph=None, _graph=[])


def round_inputs(graph: Graph, kind: str) -> int:
    """Round what meets quantized weights of `kind`, in place; return the number of values."""
    rounded: dict[Value, Value] = {}
    for node in list(graph.nodes):
        if node.domain != HALFBYTE_DOMAIN or node.op not in LINEARS:
            continue
        x, weight = node.inputs[:2]
        if x is None or weight is None or weight.constant is None:
            continue
        if _meets(weight.constant, kind):
            if x not in rounded:
                rounded[x] = _rounded(graph, x, kind, node)
            graph.set_input(node, 0, rounded[x])
    return len(rounded)


def _meets(weight: Tensor, kind: str) -> bool:
    """Whether inputs of a weight are rounded: floats meet float8 of any scales."""
    return fits_inputs(weight.encoding, kind) or (
        kind == "float" and isinstance(weight.encoding, Float8)
    )


def _rounded(graph: Graph, x: Value, kind: str, before: Node) -> Value:
    """Return x rounded row by row."""

    def constant(name: str, array: Any) -> Value:
        full = f"activations.{name}"
        held = graph.constants.get(full)
        return graph.add_constant(tensor_from_array(full, array) if held is None else held, full)

    def add(op: str, *inputs: Value, dtype: str | None = None, **attributes: Any) -> Value:
        name = graph.fresh_name(f"{x.name}.{op.lower()}")
        out = Value(name, dtype or "float32", x.shape if op != "ReduceMax" else None)
        node = Node(op, list(inputs), [out], attributes, layer=before.layer)
        node.since_version = graph.opset
        graph.insert(node, before)
        return out

    reach = constant("reach", np.array(REACH[kind], np.float32))
    smallest = constant("smallest", np.array(SMALLEST, np.float32))
    last = constant("last_axis", np.array([-1], np.int64))
    largest = add("ReduceMax", add("Abs", x), last, keepdims=1, noop_with_empty_axes=0)
    scale = add("Max", add("Div", largest, reach), smallest)
    ratio = add("Div", x, scale)
    if kind == "int":
        ends = (constant(name, np.array(end, np.float32)) for name, end in INT8.items())
        return add("Mul", add("Clip", add("Round", ratio), *ends), scale)
    codes = add("Cast", ratio, dtype="float8_e4m3fn", to="float8_e4m3fn", saturate=1)
    return add("Mul", add("Cast", codes, to="float32", saturate=1), scale)
