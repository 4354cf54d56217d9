"""Graphs in the QDQ form: what they compute, on what it depends, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.onnx.dynamic_integers import use_dynamic_integers
from halfbyte.converters.onnx.output import lowered_graph
from halfbyte.errors import HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.model import Model
from halfbyte.ir.passes import run_passes
from halfbyte.ir.text import print_graph
from halfbyte.quant.activations import ActivationOptions, quantize_activations
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.calibration.observation import samples_of
from halfbyte.quant.calibration.ranges import METHODS
from halfbyte.quant.qdq_presets import PRESETS
from halfbyte.quant.qdq_weights import bias_codes, least_scale, weight_codes
from halfbyte.runtime.session import Session
from support.integer_models import Net, residual_net, samples, token_net

NETS = {"residual": residual_net, "tokens": token_net}


def outputs(model: Model, inputs: list[dict[str, np.ndarray]], **held) -> np.ndarray:
    session = Session(model, **held)
    return np.stack([next(iter(session.run(run).values())) for run in inputs])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def content(model: Model) -> list[tuple[str, bytes]]:
    return [(name, tensor.numpy().tobytes()) for name, tensor in model.graph.constants.items()]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", NETS)
def test_integers_come_close_to_floats(net: str, preset: str) -> None:
    model = NETS[net]()
    seen, other = samples(model, 12), samples(model, 8, seed=2)
    truth = outputs(model, other)
    for method in METHODS if preset == "x86" else ("mse",):
        options = ActivationOptions(method, preset=preset)
        made, report = quantize_activations(model, seen, options)
        limit = 0.25 if method in ("entropy", "average") or preset == "x86-avx2" else 0.08
        assert error(outputs(made, other), truth) < limit, method
    assert report.layers == len(report.weights)
    assert report.samples == 12


@pytest.mark.parametrize("net", NETS)
def test_the_fused_graph_computes_what_its_pairs_say(net: str) -> None:
    model = NETS[net]()
    made, _ = quantize_activations(model, samples(model, 6))
    other = samples(model, 4, seed=3)
    fused, plain = outputs(made, other), outputs(made, other, fuse=False, device="reference")
    assert error(fused, plain) < 0.02
    graph = made.graph.copy()
    run_passes(graph)
    ops = Counter(node.op for node in graph.nodes)
    expected = {"residual": {"IntegerConv": 6, "IntegerMatMul": 1}, "tokens": {"IntegerMatMul": 6}}
    assert {op: ops[op] for op in expected[net]} == expected[net]


def test_the_same_bytes_for_any_threads_and_any_batches() -> None:
    model = residual_net()
    single = samples(model, 12)
    whole = [{"image": np.concatenate([run["image"] for run in single])}]
    parts = [{"image": np.concatenate([r["image"] for r in single[a : a + 5]])} for a in (0, 5, 10)]
    first = None
    for batches, threads in ((single, 1), (whole, 2), (parts, 3)):
        for method in ("mse", "average"):
            options = ActivationOptions(method, threads=threads)
            made, _ = quantize_activations(model, batches, options)
            found = method, print_graph(made.graph), content(made)
            first = first or {}
            assert first.setdefault(method, found) == found


def test_a_fixed_first_dimension_cuts_samples() -> None:
    graph = token_net(batch=2).graph
    rows = np.arange(6 * 6 * 16, dtype=np.float32).reshape(6, 6, 16)
    found = list(samples_of(graph, [{"tokens": rows}]))
    assert [run["tokens"].shape for run in found] == [(2, 6, 16)] * 3
    assert np.array_equal(np.concatenate([run["tokens"] for run in found]), rows)


def test_relu_and_clip_go_where_the_zero_point_cuts() -> None:
    model = residual_net()
    for preset, left in (("x86", 0), ("arm", 0), ("gpu", 4)):
        made, _ = quantize_activations(
            model, samples(model, 4), ActivationOptions("minmax", preset=preset)
        )
        ops = Counter(node.op for node in made.graph.nodes)
        assert ops["Relu"] + ops["Clip"] == left, preset
    # 6 is not on a grid that was cut above it.
    wide = [{"image": run["image"] * 400} for run in samples(model, 4)]
    made, _ = quantize_activations(model, wide, ActivationOptions("minmax"))
    assert not any(node.op == "Clip" for node in made.graph.nodes)


def test_bias_correction_brings_the_means_back() -> None:
    model = residual_net()
    seen = samples(model, 24)
    truth = outputs(model, seen).mean(0)
    gaps = []
    for correct in (False, True):
        options = ActivationOptions("percentile", 98.0, "x86-avx2", correct_bias=correct)
        made, _ = quantize_activations(model, seen, options)
        gaps.append(float(np.abs(outputs(made, seen).mean(0) - truth).max()))
    assert gaps[1] < 0.1 * gaps[0]


def test_weights_and_biases_against_plain_rounding() -> None:
    random = np.random.default_rng(4)
    weight = random.standard_normal((5, 3, 2)).astype(np.float32)
    weight[2] = 0
    found = weight_codes("w", weight, 127)
    for row, codes, scale in zip(weight, found.codes, found.scale, strict=True):
        largest = np.abs(row).max()
        assert scale == pytest.approx(max(largest / 127, np.finfo(np.float32).tiny))
        assert np.array_equal(codes, np.rint(row / scale))
        assert np.abs(found.values() - weight).max() <= found.scale.max() / 2 * (1 + 1e-6)
    assert np.abs(weight_codes("w", weight, 63).codes).max() == 63
    huge = np.asarray([1e6, 0.5])
    least = least_scale(huge, 1e-6)
    codes = weight_codes("w", np.full((2, 1), 1e-3, np.float32), 127, least)
    stored = bias_codes(huge, codes.scale * np.float32(1e-6))
    assert np.abs(stored).max() < 2**31 - 1
    assert stored * (codes.scale.astype(np.float64) * 1e-6) == pytest.approx(huge, rel=1e-6)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = residual_net()
    good = samples(model, 2)
    with pytest.raises(QuantizationError, match="no samples"):
        quantize_activations(model, [])
    with pytest.raises(HalfbyteError, match="'picture'.*image"):
        quantize_activations(model, [{"picture": good[0]["image"]}])
    bad = {"image": good[0]["image"].copy()}
    bad["image"][0, 1, 2, 3] = np.nan
    with pytest.raises(QuantizationError, match="'image'.*NaN or infinite"):
        quantize_activations(model, [good[1], bad])
    with pytest.raises(UnsupportedError, match="target 'sparc'"):
        quantize_activations(model, good, ActivationOptions(preset="sparc"))
    with pytest.raises(UnsupportedError, match="calibration method 'magic'"):
        quantize_activations(model, good, ActivationOptions("magic"))
    with pytest.raises(UnsupportedError, match="without a layer"):
        quantize_activations(model, good, ActivationOptions(keep_float=["*"]))


def test_overflow_inside_the_graph_names_the_value() -> None:
    model = residual_net()
    huge = [{"image": np.full((1, 3, 12, 12), 3e38, np.float32)}]
    with pytest.raises(QuantizationError, match="NaN or infinite values on the calibration"):
        quantize_activations(model, huge)


def test_weights_that_are_no_numbers_are_refused() -> None:
    net = Net(x=(2, 4))
    result = net.linear(net.inputs["x"], 3, "broken")
    weight = net.graph.constants["broken.weight"].numpy()
    weight[1, 2] = np.inf
    model = net.done(result)
    with pytest.raises(QuantizationError):
        quantize_activations(model, [{"x": np.ones((2, 4), np.float32)}])


def test_a_table_gets_a_scale_for_each_row() -> None:
    net = Net(x=(1, 6, 16))
    ids = net.graph.add_input("ids", "int64", (1, 6))
    table = net.constant("table.weight", net.random.standard_normal((80, 16)))
    rows = net.op("Gather", table, ids, axis=0)
    total = net.op("Add", rows, net.inputs["x"])
    model = net.done(net.linear(total, 4))
    run = {"x": np.ones((1, 6, 16), np.float32), "ids": np.arange(6, dtype=np.int64)[None]}
    made, _ = quantize_activations(model, [run])
    assert str(made.graph.constants["table.weight"].encoding) == "int8"
    assert error(outputs(made, [run]), outputs(model, [run])) < 0.02


def test_dynamic_products_take_int8_weights_only() -> None:
    model = token_net()
    whole = encoding_from_name("int8")
    weights = {
        name: requantize(tensor, whole) if name.endswith("weight") else tensor
        for name, tensor in model.weights.items()
    }
    graph = model.graph.copy()
    for name, tensor in weights.items():
        graph.set_constant(name, tensor)
    lowered, _ = lowered_graph(graph)
    before = lowered.copy()
    assert use_dynamic_integers(lowered) == 6
    ops = Counter(node.op for node in lowered.nodes)
    # Query, key and value read the same integers.
    assert (ops["MatMulInteger"], ops["DynamicQuantizeLinear"], ops["MatMul"]) == (6, 4, 2)
    other = samples(model, 3)
    truth = np.stack([Session(before).run(run)["result"] for run in other])
    found = np.stack([Session(lowered).run(run)["result"] for run in other])
    assert error(found, truth) < 0.02
    plain, _ = lowered_graph(model.graph)
    assert use_dynamic_integers(plain) == 0


def test_nothing_is_asked_of_files_that_are_not_there(tmp_path: Path) -> None:
    from halfbyte.calibration_data import DataRequest, read_calibration

    with pytest.raises(HalfbyteError, match="holds no data that can be read"):
        read_calibration(residual_net(), DataRequest((str(tmp_path),)))


def test_a_weight_of_two_layers_is_stored_once_unless_its_scales_differ() -> None:
    for bias, stored in ((0.1, 1), (3e7, 2)):
        net = Net(x=(2, 8))
        first = net.linear(net.inputs["x"], 8, "first", bias=False)
        weight = net.graph.constant_value("first.weight")
        row = net.constant("row", np.full(8, bias))
        second = net.graph.add("Linear", [first, weight, row], name="second", domain="halfbyte")
        model = net.done(second)
        runs = [{"x": net.random.standard_normal((2, 8)).astype(np.float32)} for _ in range(4)]
        made, _ = quantize_activations(model, runs)
        codes = [
            n for n, t in made.graph.constants.items() if str(t.encoding) == "i8" and t.rows > 1
        ]
        assert len(codes) == stored
        assert "first.weight" in codes
        assert error(outputs(made, runs), outputs(model, runs)) < 0.05
