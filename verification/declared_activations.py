"""Activations rounded as a checkpoint declares, for measuring what a server would compute.

Servers round the inputs of quantized linear layers to 8 bits, int8 or float8 (e4m3), each token by
its own largest value, max|x| / 127 or max|x| / 448, or all by a stored scale. Here the codes are
multiplied back at once, so the products are exact and only the rounding counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.activation_scheme import ACTIVATIONS, REACH, is_rounded
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array

MODES = ("float", "declared")
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
        scales = "stored scale for each layer" if _is_stored(inputs) else "scale for each token"
        return f"{NAMES[kind]} activations, one {scales}"
    when = "ranges found while it runs" if inputs.get("dynamic") else "stored ranges"
    bits, form = inputs.get("num_bits"), inputs.get("type", "int")
    return f"activations of {bits} bits ({form}, by {inputs.get('strategy')}, {when})"


def _kind(inputs: Mapping[str, Any]) -> str:
    """Return `int` or `float` for what `with_declared` can do, else nothing."""
    kind = str(inputs.get("type", "int"))
    by_token = inputs.get("strategy") == "token" and inputs.get("dynamic") is True
    known = by_token or _is_stored(inputs)
    fits = known and inputs.get("num_bits") == 8 and inputs.get("symmetric", True) is True
    return kind if fits and kind in REACH else ""


def _is_stored(inputs: Mapping[str, Any]) -> bool:
    """Whether each layer has one stored scale."""
    return inputs.get("strategy") == "tensor" and inputs.get("dynamic", False) is False


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


def with_declared(model: Model, scales: Mapping[str, float] | None = None) -> Model:
    """Return the model over a graph that rounds activations as declared; itself if nothing is.

    scales: stored ones, by the names of weights.

    Raises:
        UnsupportedError: they have another form than 8 bits by token or by tensor.
        FormatError: a layer has no stored scale, or none that can be divided by.
    """
    inputs = declared(model)
    if inputs is None:
        return model
    kind = _kind(inputs)
    if not kind:
        advice = "leave out --activations: weights alone are then measured"
        source = model.provenance.source or "model"
        known = ["8 bits, symmetric, dynamic by token or stored by tensor"]
        raise UnsupportedError(described(inputs), source, known, advice)
    graph = model.graph.copy()
    round_inputs(graph, kind, _held_scales(model, scales or {}) if _is_stored(inputs) else None)
    # A graph that is given is taken as it stands.
    return replace(model, build=lambda _: graph, stored_graph=None, _graph=[])


def round_inputs(graph: Graph, kind: str, scale_of: Callable[[Value], float] | None = None) -> int:
    """Round what meets quantized weights of `kind`, in place; return how often.

    scale_of: the stored scale of what meets a weight; None for one of each row. Where weights that
    read one value have several, the largest counts: servers load such weights as one.
    """
    met = _met(graph, kind)
    for (x, _), nodes in met.items():
        stored = None
        if scale_of is not None:
            stored = max(scale_of(weight) for node in nodes if (weight := node.inputs[1]))
        rounded = _rounded(graph, x, kind, nodes[0], stored)
        for node in nodes:
            graph.set_input(node, 0, rounded)
    return len(met)


def _met(graph: Graph, kind: str) -> dict[tuple[Value, str], list[Node]]:
    """Return the nodes with quantized weights of `kind` by what they read and their operator.

    Servers round for the experts of a layer apart from what else reads the same value.
    """
    found: dict[tuple[Value, str], list[Node]] = {}
    for node in graph.nodes:
        if node.domain != HALFBYTE_DOMAIN or node.op not in LINEARS:
            continue
        x, weight = node.inputs[:2]
        if x is None or weight is None or weight.constant is None:
            continue
        if is_rounded(weight.constant.encoding, kind):
            found.setdefault((x, node.op), []).append(node)
    return found


def _held_scales(model: Model, scales: Mapping[str, float]) -> Callable[[Value], float]:
    """Return what gives the stored scale of what meets a weight of the model's graph."""
    names = {id(tensor): name for name, tensor in model.weights.items()}
    where = model.provenance.source or "model"

    def scale_of(weight: Value) -> float:
        assert weight.constant is not None
        name = names.get(id(weight.constant), weight.constant.name)
        scale = scales.get(name)
        if scale is None:
            rule = f"holds no input_scale for {name!r}, its config says that there is one"
            raise FormatError(where, f"{rule}; download it again, or leave out --activations")
        if not 0 < scale < np.inf:
            rule = f"the input_scale of {name!r} is {scale:g}, a positive number was required"
            raise FormatError(where, f"{rule}; leave out --activations")
        return scale

    return scale_of


def _rounded(graph: Graph, x: Value, kind: str, before: Node, stored: float | None) -> Value:
    """Return x rounded by a stored scale, or row by row."""

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

    def by_row() -> Value:
        reach = constant("reach", np.array(REACH[kind], np.float32))
        smallest = constant("smallest", np.array(SMALLEST, np.float32))
        last = constant("last_axis", np.array([-1], np.int64))
        largest = add("ReduceMax", add("Abs", x), last, keepdims=1, noop_with_empty_axes=0)
        return add("Max", add("Div", largest, reach), smallest)

    if stored is None:
        scale = by_row()
    else:
        scale = constant(f"{x.name}.{before.op}.scale", np.array(stored, np.float32))
    ratio = add("Div", x, scale)
    if kind == "int":
        ends = (constant(name, np.array(end, np.float32)) for name, end in INT8.items())
        return add("Mul", add("Clip", add("Round", ratio), *ends), scale)
    codes = add("Cast", ratio, dtype="float8_e4m3fn", to="float8_e4m3fn", saturate=1)
    return add("Mul", add("Cast", codes, to="float32", saturate=1), scale)
