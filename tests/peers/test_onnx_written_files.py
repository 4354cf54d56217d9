"""Files that we write, run by onnxruntime: every operator, and quantized models.

An operator's case counts as `same`, as `unsupported` where onnxruntime says so in its own words, or
as `departs` where the reference implementation of ONNX agrees with us and onnxruntime does not.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters.onnx.output import lowered_graph
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.ir.ops import FAMILIES, op_spec
from halfbyte.ir.ops.spec import Case
from support.op_cases import case_graph, evaluate_case

ort: Any = pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

# What onnxruntime says where it lacks a type, a version or a value of an attribute.
UNSUPPORTED = re.compile(
    r"Unsupported model IR version|NOT_IMPLEMENTED|under development|is not a registered function"
    r"|Type '.*' of input parameter .* is invalid|only released ONNX opsets|INVALID_GRAPH"
    r"|lrn\.h:\d+|string_normalizer\.cc|deep_cpu_gru\.h|deep_cpu_lstm\.h|grid_sample\.h"
    r"|conv_integer\.cc|matmul_integer\.cc|element_wise_ops\.cc"
)
# Drawn at random, or with numbers that the standard leaves open.
OPEN = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")),
    **dict.fromkeys(("Bernoulli", "Multinomial")),
    "Dropout": ("training",),
    "LSTM": ("plain",),
    "ai.onnx.ml.TreeEnsemble": ("largest",),
}
FLOOR = 430
LOOSE = {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Products with dequantized weights in float32; by default they round activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def alike(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    if isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    first, second = np.asarray(left), np.asarray(right)
    if first.shape != second.shape:
        return False
    if second.dtype.kind in "OUS":
        return bool(np.array_equal(first.astype(str), second.astype(str)))
    if second.dtype.kind == "c":
        return bool(np.allclose(first, second, **LOOSE))
    return bool(np.allclose(first.astype(float), second.astype(float), **LOOSE))


def verdict(key: str, case: Case, path: Path) -> tuple[str, str]:
    graph, feeds = case_graph(op_spec(key), case)
    lowered, _ = lowered_graph(graph)
    write_graph(lowered, path)
    feeds = {n: v if isinstance(v, list) else np.asarray(v) for n, v in feeds.items()}
    try:
        found = session(path).run(None, feeds)
    except Exception as error:
        said = " ".join(str(error).split())
        return ("unsupported" if UNSUPPORTED.search(said) else "fails"), said[:300]
    wanted = evaluate_case(key, case)
    if all(map(alike, found, wanted)):
        return "same", ""
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(str(path)).run(None, feeds)
    return ("departs" if all(map(alike, reference, wanted)) else "differs"), ""


@cache
def outcomes(family: str) -> dict[str, tuple[str, str]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for key in FAMILIES[family]:
            if key.startswith("halfbyte."):
                continue
            for case in op_spec(key).cases():
                left_open = key in OPEN and (OPEN[key] is None or case.name in OPEN[key])
                if not case.states and not left_open:
                    found[f"{key}-{case.name}"] = verdict(key, case, Path(folder) / "m.onnx")
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_onnxruntime_computes_what_we_compute(family: str) -> None:
    bad = {n: said for n, said in outcomes(family).items() if said[0] in ("fails", "differs")}
    assert not bad


def test_enough_cases_agree() -> None:
    counts = Counter(kind for family in FAMILIES for kind, _ in outcomes(family).values())
    assert counts["same"] >= FLOOR, counts
    assert counts["departs"] <= 10, counts


def small_model(path: Path) -> None:
    """Write a lookup, two linear layers and a convolution as PyTorch would export them."""
    helper, kinds = onnx.helper, onnx.TensorProto
    random = np.random.default_rng(3)
    arrays = {
        "emb": random.standard_normal((50, 64)),
        "w1": random.standard_normal((64, 96)) / 8,
        "b1": random.standard_normal(96),
        "w2": random.standard_normal((96, 32)) / 8,
        "conv.weight": random.standard_normal((32, 1, 3)),
        "shift": random.standard_normal((1, 32)),
    }
    stored = [
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in arrays.items()
    ]
    nodes = [
        helper.make_node("Gather", ["emb", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["p"]),
        helper.make_node("Add", ["p", "shift"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["t", "conv.weight"], ["y"], group=32, pads=[1, 1]),
    ]
    inputs = [helper.make_tensor_value_info("ids", kinds.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("y", kinds.FLOAT, ["batch", 32, "length"])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=7), path)


TYPES = (
    *("float16", "bfloat16", "int8", "int8-asym", "int8-g32", "int4", "int4-g32"),
    *("int4-g32-asym", "int4-g16-f32", "int2-g32", "int3-g32", "int5-g32-asym", "int6-g32"),
    *("int4-g32-fzp-f32", "Q4_0", "Q4_1", "Q5_0", "Q8_0"),
)


@pytest.mark.parametrize("flavour", ["onnx", "onnx:ort"])
@pytest.mark.parametrize("type_name", TYPES)
def test_quantized_models(type_name: str, flavour: str, tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    small_model(source)
    report = pipeline.quantize(source, output, type=type_name, to=flavour)
    kinds = {tensor.source_name: tensor.encoding for tensor in report.tensors}
    assert {n for n, kind in kinds.items() if kind == "float32"} == {"b1", "conv.weight", "shift"}
    assert kinds["w1"] == kinds["emb"] == type_name
    ids = np.random.default_rng(4).integers(0, 50, (2, 9))
    (plain,) = session(source).run(None, {"ids": ids})
    (theirs,) = session(output).run(None, {"ids": ids})
    (ours,) = pipeline.session(pipeline.open(output)).run({"ids": ids}).values()
    largest = np.abs(plain).max()
    assert np.abs(theirs - ours).max() <= 1e-5 * largest
    distance = np.abs(theirs - plain).max() / largest
    assert 0 < distance < (0.05 if re.match("int8|Q8|float|bfloat", type_name) else 0.9)
    contrib = {node.op_type for node in onnx.load(output).graph.node if node.domain}
    narrow = type_name[3:4] in "234" or type_name == "Q4_0"
    if flavour == "onnx" or not narrow or "fzp" in type_name:
        assert not contrib
    else:
        assert contrib == {"MatMulNBits"}


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 24])
def test_an_asked_opset(opset: int, tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    small_model(source)
    pipeline.convert(source, output, opset=opset)
    model = onnx.load(output)
    assert model.opset_import[0].version == opset
    names = {entry.name for entry in model.graph.initializer}
    assert names >= {"emb", "w1", "b1", "w2", "conv.weight", "shift"}
    ids = np.random.default_rng(4).integers(0, 50, (2, 9))
    (plain,) = session(source).run(None, {"ids": ids})
    np.testing.assert_array_equal(session(output).run(None, {"ids": ids})[0], plain)
