"""Activations that a checkpoint declares: what fits, what is rounded, what a verification says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.converters.hugging_face.checkpoints.ct_activations import (
    dynamic_inputs,
    static_inputs,
    with_dynamic_inputs,
    with_static_inputs,
)
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.integer_activations import ActivationRequest, check_activations
from halfbyte.ir.activation_scheme import ACTIVATIONS
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.runtime.session import Session
from halfbyte.verification.declared_activations import (
    activation_notes,
    described,
    round_inputs,
    with_declared,
)

COLUMNS = 96
TYPES = {"int": "int8-f32", "float": "fp8"}


def weight(name: str, type_name: str, seed: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((24, COLUMNS)).astype(np.float32)
    tensor = tensor_from_array(name, values)
    return requantize(tensor, encoding_from_name(type_name)) if type_name else tensor


def layers(kind: str) -> Graph:
    """Return two quantized layers and a float one that read one value."""
    graph = Graph()
    x = graph.add_input("x", "float32", ("rows", COLUMNS))
    for index, type_name in enumerate((TYPES[kind], TYPES[kind], "")):
        held = graph.add_constant(weight(f"w{index}", type_name, index))
        graph.outputs.append(
            graph.add("Linear", [x, held], name=f"y{index}", domain=HALFBYTE_DOMAIN)
        )
    return graph


def rows() -> NDArray[np.float32]:
    """Return tokens of very different size, one of zeros and one with an outlier."""
    x = np.random.default_rng(9).standard_normal((6, COLUMNS)).astype(np.float32)
    x *= np.array([1, 1e-6, 1e4, 0, 1, 1], np.float32)[:, None]
    x[4, 7] = 800
    return x


def expected(x: NDArray[np.float32], kind: str, stored: float | None) -> NDArray[np.float64]:
    """Return rows by the formula, in float64 but for the scales."""
    reach = np.float32(127 if kind == "int" else 448)
    scale = np.abs(x).max(axis=1, keepdims=True) / reach
    scale = scale if stored is None else np.float32(stored)
    ratio = x / np.where(scale == 0, np.float32(1), scale)
    if kind == "int":
        codes = np.clip(np.rint(ratio), -128, 127)
    else:
        codes = np.clip(ratio, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scale.astype(np.float64)


@pytest.mark.parametrize("stored", [None, 0.03])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_inputs_of_quantized_weights_are_rounded(kind: str, stored: float | None) -> None:
    graph, x = layers(kind), rows()
    # Of weights that read one value, the largest scale counts.
    scales = {"w0": stored, "w1": 0.02}
    given = None if stored is None else lambda value: scales[value.name]
    assert round_inputs(graph, kind, given) == 1
    found = Session(graph).run({"x": x})
    rounded = expected(x, kind, stored)
    assert np.abs(rounded - x).max() > 0
    for index, given in enumerate((rounded, rounded, x.astype(np.float64))):
        values = graph.constants[f"w{index}"].decode().astype(np.float64)
        bound = np.abs(given) @ np.abs(values).T
        error = np.abs(found[f"y{index}"] - given @ values.T)
        assert (error <= 1e-6 * bound).all()


def test_other_weights_keep_their_inputs() -> None:
    for kind in TYPES:
        other = layers("float" if kind == "int" else "int")
        assert round_inputs(other, kind) == 0
    grouped = Graph()
    x = grouped.add_input("x", "float32", ("rows", COLUMNS))
    held = grouped.add_constant(weight("w", "int8-g32-f32", 0))
    grouped.outputs.append(grouped.add("Linear", [x, held], domain=HALFBYTE_DOMAIN))
    assert round_inputs(grouped, "int") == 0


def declaring(inputs: dict[str, Any] | None) -> Model:
    graph = layers("int")
    said = {} if inputs is None else {ACTIVATIONS: {"input_activations": inputs}}
    return Model(dict(graph.constants), metadata=said, build=lambda _: graph)


def test_the_graph_of_a_model_stays() -> None:
    model = declaring(dynamic_inputs("int"))
    nodes = len(model.graph.nodes)
    assert len(with_declared(model).graph.nodes) > nodes == len(model.graph.nodes)
    plain = declaring(None)
    assert with_declared(plain) is plain


STATIC = static_inputs("int")


def test_stored_scales_are_those_of_the_weights() -> None:
    model, scales = declaring(STATIC), {"w0": 0.01, "w1": 0.01}
    rounded = with_declared(model, scales)
    given = {"x": rows()}
    plain, found = Session(model).run(given), Session(rounded).run(given)
    assert all((plain[f"y{i}"] != found[f"y{i}"]).any() for i in (0, 1))
    np.testing.assert_allclose(
        found["y2"], plain["y2"], rtol=1e-5, atol=1e-5 * np.abs(rows()).max()
    )
    for broken in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(FormatError, match="input_scale of 'w1' is .* leave out --activations"):
            with_declared(model, {**scales, "w1": broken})
    for lacking in (None, {"w0": 0.01}):
        with pytest.raises(FormatError, match="holds no input_scale for 'w"):
            with_declared(model, lacking)


@pytest.mark.parametrize(
    "inputs",
    [
        dynamic_inputs("int") | {"num_bits": 4},
        dynamic_inputs("int") | {"symmetric": False},
        STATIC | {"symmetric": False},
        STATIC | {"strategy": "channel"},
        dynamic_inputs("int") | {"dynamic": False},
    ],
)
def test_other_declarations_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="or stored by tensor; leave out --activations"):
        with_declared(declaring(inputs))
    assert "declared rounds" not in activation_notes([declaring(inputs)], "float", "exact")[0]


def test_what_a_verification_says() -> None:
    plain, model = declaring(None), declaring(dynamic_inputs("float"))
    assert activation_notes([plain, plain], "float", "exact") == ()
    (note,) = activation_notes([plain, model], "float", "exact")
    assert "float8 activations" in note and "weights alone" in note and "--activations" in note
    assert "by 32 columns" in activation_notes([model], "float", "int8")[0]
    assert activation_notes([model], "declared", "exact")[0].endswith("rounded so here")
    assert described(STATIC) == "int8 activations, one stored scale for each layer"
    assert "stored ranges" in described(STATIC | {"num_bits": 4})
    for models, mode, compute in (
        ([plain], "declared", "exact"),
        ([model], "declared", "int8"),
        ([model], "strange", "exact"),
    ):
        with pytest.raises(UnsupportedError):
            activation_notes(models, mode, compute)


def test_declaring_drops_stored_ranges_of_inputs() -> None:
    entry = {"dtype": "float32", "shape": [1], "values": [0.5]}
    carried = {
        "input_activations": STATIC,
        "kv_cache_scheme": {"num_bits": 8},
        "scales": {"a.input_scale": entry, "a.k_scale": entry},
    }
    made = with_dynamic_inputs(carried, "int")
    assert made["scales"] == {"a.k_scale": entry}
    assert made["input_activations"]["dynamic"] is True
    assert made["kv_cache_scheme"] == {"num_bits": 8}
    assert "scales" not in with_dynamic_inputs({}, "float")
    anew = with_static_inputs(carried, "float", {"b": 0.25}, "mse")
    assert anew["scales"] == {"a.k_scale": entry, "b.input_scale": entry | {"values": [0.25]}}
    inputs = anew["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"], inputs["observer"]) == ("tensor", False, "mse")


CT = "hf:compressed-tensors"


FITTING = {
    "int8-dynamic": ("int8", "int8-f32", "int8-bf16"),
    "int8-static": ("int8", "int8-f32", "int8-bf16"),
    "fp8": ("fp8", "fp8-bf16"),
    "fp8-static": ("fp8", "fp8-bf16", "fp8-tensor"),
}


@pytest.mark.parametrize("mode", FITTING)
def test_what_goes_together(mode: str) -> None:
    request, fitting = ActivationRequest(mode), FITTING[mode]
    for type_name in fitting:
        check_activations(request, type_name, CT)
    others = ["int8-g32", "int8-asym", "int4", "Q4_K_M", "Q8_0", "", "fp8-tensor", "fp8-block128"]
    others = [name for name in others if name not in fitting]
    for type_name in [*others, "fp8" if mode.startswith("int8") else "int8"]:
        with pytest.raises(UnsupportedError, match=f"supported: --type {fitting[0]}"):
            check_activations(request, type_name, CT)
    with pytest.raises(UnsupportedError, match="give --tensor GLOB=bfloat16"):
        check_activations(replace(request, keep_float=["x"]), fitting[0], CT)
    for target in ("hf", "hf:gptq", "gguf", "hb"):
        with pytest.raises(UnsupportedError, match=f"give --to {CT}"):
            check_activations(request, fitting[0], target)


def test_onnx_files_take_integers_only() -> None:
    check_activations(ActivationRequest("int8-dynamic"), "int8", "onnx:ort")
    for mode in ("fp8", "fp8-static"):
        with pytest.raises(UnsupportedError, match=f"give --to {CT}"):
            check_activations(ActivationRequest(mode), "fp8", "onnx")


def test_levels_are_of_integers() -> None:
    check_activations(ActivationRequest("int8-static", "entropy"), "int8", CT)
    with pytest.raises(UnsupportedError, match="'entropy' of float8 .* minmax, average"):
        check_activations(ActivationRequest("fp8-static", "entropy"), "fp8", CT)
    with pytest.raises(UnsupportedError, match="calibration method 'best'"):
        check_activations(ActivationRequest("int8-static", "best"), "int8", CT)
