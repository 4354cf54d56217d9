"""The operator table: agreement with onnx.reference, inference, rules."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.dtypes import ONNX_DTYPES, dtype_of
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import FAMILIES, infer, op_key, op_spec
from halfbyte.ir.ops.cached_attention import visible
from halfbyte.ir.ops.matmul import linear
from halfbyte.ir.ops.spec import UNKNOWN, Case, Context, ValueType, normal
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from support.op_cases import all_cases, evaluate_case

NUMBER = {name: number for number, name in ONNX_DTYPES.items()}
DRAWN = {"Bernoulli", "Multinomial"} | {
    f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")
}
# what onnx.reference lacks, or computes otherwise than the standard says
REFERENCE_LACKS = {
    "ConvTranspose-groups": "fails with groups",
    "ConvTranspose-shaped": "fails with output_shape",
    "GatherElements-fewer": "fails with fewer indices than elements",
    "GlobalMaxPool-volume": "reduces planes only",
    "ImageDecoder-colour": "needs another package",
    "ImageDecoder-grey": "needs another package",
    "LpPool-partial": "counts a padded window wrongly",
    "MaxPool-same": "fails with auto_pad of series",
    "Pad-axes": "fails with negative pads",
    "RNN-lengths": "ignores sequence_lens",
    "GlobalLpPool-plane": "is not there",
    "GlobalLpPool-volume": "is not there",
    "LRN-even": "takes images only",
    "LRN-odd": "leaves channels beyond the batch size as they are",
    "LogSoftmax-first": "takes the logarithm of a softmax that is 0",
    "LpNormalization-magnitudes": "sums signed numbers",
    "MatMulInteger-many": "subtracts zero points of rows from columns",
    "MaxRoiPool-border": "is not there",
    "Mean-outer": "broadcasts to the first input only",
    "Scatter-rows": "is not there",
    "StringNormalizer-stops": "tells the case of stop words apart where it is not asked to",
    "Upsample-linear": "is not there",
    "Upsample-nearest": "is not there",
}


def has_reference(key: str, case: Case) -> bool:
    plain = all(v is None or isinstance(v, np.ndarray) for v in case.inputs)
    graphs = any(isinstance(v, Graph) for v in case.attributes.values())
    unlike = key in DRAWN or key.startswith(("Sequence", "SplitToSequence", "Optional", "Constant"))
    listed = f"{key}-{case.name}" in REFERENCE_LACKS
    return "." not in key and plain and not graphs and not unlike and not listed


ONNX_CASES = [(key, case) for key, case in all_cases() if has_reference(key, case)]
# onnx.reference computes in float32, the reference of this package in float64
RELATIVE, ABSOLUTE = 1e-5, 1e-5


def onnx_result(key: str, case: Case) -> list[np.ndarray]:
    names = [f"in{i}" if v is not None else "" for i, v in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    attributes = dict(case.attributes)
    for name, value in attributes.items():
        if op_spec(key).attributes[name].kind == "dtype" and isinstance(value, str):
            attributes[name] = NUMBER[value]
    node = onnx.helper.make_node(key, names, outputs, **attributes)
    values = {n: v for n, v in zip(names, case.inputs, strict=True) if v is not None}
    infos = [
        onnx.helper.make_tensor_value_info(n, NUMBER[dtype_of(v)], v.shape)
        for n, v in values.items()
    ]
    outs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in outputs]
    graph = onnx.helper.make_graph([node], "case", infos, outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 28)])
    return ReferenceEvaluator(model).run(None, values)


@pytest.mark.parametrize(
    ("key", "case"), ONNX_CASES, ids=[f"{key}-{case.name}" for key, case in ONNX_CASES]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_evaluate_agrees_with_onnx_reference(key: str, case: Case) -> None:
    expected = onnx_result(key, case)
    for result, wanted in zip(evaluate_case(key, case), expected, strict=True):
        assert result.shape == np.shape(wanted)
        assert dtype_of(result) == dtype_of(np.asarray(wanted))
        if dtype_of(result) == "string":
            assert result.tolist() == np.asarray(wanted).tolist()
            continue
        wide = result.astype(np.float64), np.asarray(wanted).astype(np.float64)
        np.testing.assert_allclose(*wide, rtol=RELATIVE, atol=ABSOLUTE)


PLAIN_CASES = [
    (key, case)
    for key, case in all_cases()
    if all(v is None or isinstance(v, np.ndarray) for v in case.inputs)
    and not any(isinstance(v, Graph) for v in case.attributes.values())
    and not key.startswith(("Sequence", "Optional", "SplitToSequence"))
]


@pytest.mark.parametrize(("key", "case"), PLAIN_CASES, ids=lambda v: getattr(v, "name", v))
def test_inferred_types_are_those_of_the_results(key: str, case: Case) -> None:
    spec = op_spec(key)
    inputs = [
        None if v is None else tensor_value(f"in{i}", v, constant=v.dtype.kind == "i")
        for i, v in enumerate(case.inputs)
    ]
    outputs = [Value(f"out{i}") for i in range(case.outputs)]
    version = spec.versions[-1]
    node = Node(spec.op, inputs, outputs, dict(case.attributes), spec.domain, version)
    for kind, result in zip(infer(node), evaluate_case(key, case), strict=False):
        assert kind.dtype == dtype_of(result)
        assert kind.shape is not None
        assert len(kind.shape) == result.ndim
        for dim, length in zip(kind.shape, result.shape, strict=True):
            assert dim in (length, UNKNOWN)


def tensor_value(name: str, array: np.ndarray, constant: bool) -> Value:
    tensor = tensor_from_array(name, array) if constant else None
    return Value(name, dtype_of(array), array.shape, constant=tensor)


def inferred(op: str, *inputs: Value | None, outputs: int = 1, **attributes) -> list[ValueType]:
    domain, _, name = op.rpartition(".")
    outs = [Value(f"out{i}") for i in range(outputs)]
    version = op_spec(op).versions[-1]
    return infer(Node(name, list(inputs), outs, attributes, domain, version))


def f32(*shape: int | str) -> Value:
    return Value("x", "float32", shape)


def ints(*values: int) -> Value:
    return tensor_value("ints", np.asarray(values, np.int64), constant=True)


def test_every_family_lists_exactly_its_specs() -> None:
    from importlib import import_module

    for family, names in FAMILIES.items():
        specs = import_module(f"halfbyte.ir.ops.{family}").SPECS
        assert {spec.key for spec in specs} == set(names)


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match=r"^graph: operator 'Ad' is not supported; .*Add"):
        op_spec("Ad")
    assert op_key("Add", "ai.onnx") == "Add"
    assert op_key("Linear", "halfbyte") == "halfbyte.Linear"


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Add", [f32("batch", 4), f32(4)], {}, ("batch", 4)),
        ("Add", [f32("batch", 4), f32(3, 1, 4)], {}, (3, "batch", 4)),
        ("Add", [f32("a"), f32("b")], {}, (UNKNOWN,)),
        ("Add", [f32("a"), f32(5)], {}, (5,)),
        ("Reshape", [f32("b", "s", 8), ints(0, 0, 2, -1)], {}, ("b", "s", 2, 4)),
        ("Reshape", [f32("b", "s", 2, 4), ints(0, -1, 8)], {}, ("b", "s", 8)),
        ("Reshape", [f32("b", "s"), ints(-1)], {}, (UNKNOWN,)),
        ("Reshape", [f32("b", "s"), Value("shape", "int64", (2,))], {}, (UNKNOWN, UNKNOWN)),
        ("Unsqueeze", [f32("b"), Value("axes", "int64", (1,))], {}, None),
        ("Squeeze", [f32("b", 1)], {}, None),
        ("Transpose", [Value("x", "float32")], {}, None),
        ("Concat", [f32("b", 2), f32("b", "n")], {"axis": 1}, ("b", UNKNOWN)),
        ("Concat", [f32("b", 2), Value("x", "float32")], {"axis": 1}, ("b", UNKNOWN)),
        ("Slice", [f32("b", 6), ints(1), ints(4), ints(0)], {}, (UNKNOWN, 6)),
        ("Slice", [f32("b"), Value("s", "int64", (1,)), ints(4)], {}, (UNKNOWN,)),
        ("Gather", [f32("b", "s", 8), Value("i", "int64", ("n",))], {"axis": 1}, ("b", "n", 8)),
        ("Expand", [f32(3, 1), Value("shape", "int64", (2,))], {}, (3, UNKNOWN)),
        ("Range", [ints(0), Value("n", "int64", ()), ints(1)], {}, (UNKNOWN,)),
        ("ReduceMax", [f32("b", 4), Value("axes", "int64", (1,))], {}, (UNKNOWN, UNKNOWN)),
        ("MatMul", [f32("b", "s", 4), f32(4, 5)], {}, ("b", "s", 5)),
        ("MatMul", [Value("x", "float32"), f32(4, 5)], {}, None),
        ("Gemm", [Value("x", "float32"), f32(4, 5)], {}, None),
        ("Split", [Value("x", "float32")], {}, None),
        ("Shape", [Value("x", "float32")], {}, (UNKNOWN,)),
        ("halfbyte.Linear", [f32("b", "s", 4), f32(6, 4)], {}, ("b", "s", 6)),
        ("halfbyte.Linear", [f32("b", "s", 4), Value("w", "float32")], {}, ("b", "s", UNKNOWN)),
    ],
)
def test_symbolic_shapes(op: str, inputs: list[Value], attributes: dict, expected) -> None:
    assert inferred(op, *inputs, **attributes)[0].shape == expected


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "rule"),
    [
        ("Add", [f32(2), f32(3)], {}, "dimensions 2 and 3 do not broadcast"),
        ("Add", [f32(2), Value("y", "int64", (2,))], {}, "float32 and int64 meet"),
        ("Add", [f32(2), None], {}, "input 1 is missing"),
        ("Where", [f32(2), f32(2), f32(2)], {}, "must be bool"),
        ("Cast", [f32(2)], {"to": "float31"}, "'float31', a numpy dtype name"),
        ("Softmax", [f32(2)], {"axis": 2}, "axis 2 is outside rank 1"),
        ("Gelu", [f32(2)], {"approximate": "sine"}, "approximate must be"),
        ("Reshape", [f32(2, 3), ints(4, 2)], {}, "element counts must agree"),
        ("Transpose", [f32(2, 3)], {"perm": [0, 0]}, "is no order of 2 axes"),
        ("Concat", [f32(2, 3), f32(2)], {"axis": 0}, "differ in rank"),
        ("Split", [f32(4), ints(1, 2)], {}, "with 1 outputs"),
        ("Gather", [f32(4, 2), f32(1)], {}, "int64 or int32 was required"),
        ("Constant", [], {}, "exactly one value attribute"),
        ("MatMul", [f32(), f32(2)], {}, "takes no scalars"),
        ("MatMul", [f32(2, 3), f32(4, 2)], {}, "sums over 3 and 4"),
        ("Gemm", [f32(2), f32(2, 2)], {}, "takes matrices"),
        ("halfbyte.Linear", [f32(2, 3), f32(5, 4)], {}, "sums over 3 and 4"),
        ("halfbyte.Linear", [f32(2, 3), f32(5, 3, 1)], {}, r"\[out, in\] required"),
        ("halfbyte.Linear", [f32(2, 3), f32(5, 3), f32(4)], {}, "sums over 4 and 5"),
        ("halfbyte.LinearGroup", [f32(2, 3), f32(5, 3)], {"count": 2}, "group of 2 needs 2"),
        ("RMSNormalization", [f32(2, 3), f32(4)], {}, "do not broadcast"),
        ("LayerNormalization", [f32(3), f32(1, 3)], {}, "scale has rank 2, at most 1"),
        ("RotaryEmbedding", [f32(2), f32(2), f32(2)], {}, "rank 1, 3 or 4"),
        ("RotaryEmbedding", [f32(1, 2, 8), f32(1, 2, 4), f32(1, 2, 4)], {}, "needs attribute"),
    ],
)
def test_broken_rules_name_the_node(op: str, inputs: list, attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule) as error:
        inferred(op, *inputs, **attributes)
    assert f"{op} -> 'out0'" in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "shape", "rule"),
    [
        ({"num_heads": 3, "num_kv_heads": 2}, (1, 1, 12), "must be a multiple"),
        ({"num_heads": 2, "num_kv_heads": 2, "key_state": "k"}, (1, 1, 12), "go together"),
        ({"num_heads": 5, "num_kv_heads": 5}, (1, 1, 12), r"is no \[b, s, 5 \* d\]"),
    ],
)
def test_attention_rules(attributes: dict, shape: tuple, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        inferred("halfbyte.CachedAttention", *[f32(*shape)] * 3, **attributes)


def test_attention_states_need_a_session() -> None:
    spec = op_spec("halfbyte.CachedAttention")
    named = {"num_heads": 1, "num_kv_heads": 1, "key_state": "k", "value_state": "v"}
    row = np.ones((1, 1, 4), np.float32)
    with pytest.raises(GraphError, match="a state needs a session"):
        spec.evaluate([row, row, row], spec.with_defaults(named), Context())


def test_window_counts_the_own_position() -> None:
    seen = visible(2, 4, causal=True, window=2)
    assert seen.tolist() == [[False, True, True, False], [False, False, True, True]]
    assert visible(2, 2, causal=False, window=0).all()


def test_attention_is_the_plain_formula() -> None:
    q, k, v = normal(1, 1, 3, 8), normal(2, 1, 3, 8), normal(3, 1, 3, 8)
    attributes = {"num_heads": 2, "num_kv_heads": 2, "scale": 0.5}
    result = evaluate_case("halfbyte.CachedAttention", Case("c", [q, k, v], attributes))[0]
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for row in range(3):
            scores = [0.5 * float(q[0, row, part] @ k[0, j, part]) for j in range(row + 1)]
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted = sum(w * v[0, j, part] for j, w in enumerate(weights))
            np.testing.assert_allclose(result[0, row, part], wanted, rtol=1e-5, atol=1e-6)


def test_padding_row_that_sees_nothing_is_zero() -> None:
    row = normal(4, 1, 2, 4)
    mask = np.asarray([[0, 0]], np.int64)
    attributes = {"num_heads": 1, "num_kv_heads": 1, "causal": 0}
    result = evaluate_case("halfbyte.CachedAttention", Case("c", [row, row, row, mask], attributes))
    assert not result[0].any()


def encoded(name: str, values: np.ndarray) -> Tensor:
    encoding = encoding_from_name(name)
    parts = {part: ArrayPart(array) for part, array in encoding.encode(values).items()}
    return Tensor("w", values.shape, encoding, parts)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "Q4_0", "Q8_0", "int4-g32"])
def test_linear_over_an_encoded_weight_multiplies_its_values(name: str) -> None:
    weight = encoded(name, normal(5, 40, 64))
    x, bias = normal(6, 3, 64), normal(7, 40)
    wanted = x.astype(np.float64) @ weight.float32().astype(np.float64).T + bias
    np.testing.assert_array_equal(linear(x, weight, bias), wanted.astype(np.float32))


def test_linear_decodes_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import halfbyte.ir.ops.matmul as module

    weight = encoded("Q8_0", normal(8, 40, 64))
    x = normal(9, 3, 64)
    whole = linear(x, weight, None)
    monkeypatch.setattr(module, "DECODE_BYTES", 7 * 8 * 64)
    np.testing.assert_array_equal(linear(x, weight, None), whole)


def test_gather_decodes_rows_of_an_encoded_table() -> None:
    table = encoded("Q4_0", normal(10, 6, 32))
    spec = op_spec("Gather")
    ids = np.asarray([[5, 0], [-1, 3]])
    rows = spec.evaluate([table, ids], {"axis": 0}, Context())[0]
    np.testing.assert_array_equal(rows, table.float32()[ids])
    columns = spec.evaluate([table, np.asarray([1])], {"axis": 1}, Context())[0]
    np.testing.assert_array_equal(columns, table.float32()[:, [1]])


def test_gather_over_a_stored_table_takes_the_declared_dtype() -> None:
    table = tensor_value("w", normal(1, 4, 2).astype(np.float16), constant=True)
    ids = Value("i", "int64", ("s",))
    assert inferred("Gather", table, ids)[0] == ValueType("float32", ("s", 2))
    node = Node("Gather", [table, ids], [Value("y", "float16")])
    assert infer(node)[0].dtype == "float16"


def test_stored_floats_adapt_to_the_values_they_meet() -> None:
    half = tensor_value("w", normal(1, 4).astype(np.float16), constant=True)
    assert inferred("Add", f32(2, 4), half)[0].dtype == "float32"
    assert inferred("Add", half, half)[0].dtype == "float32"
    double = tensor_value("w", np.ones(4), constant=True)
    assert inferred("Add", double, double)[0].dtype == "float64"


def test_float8_cast_saturates() -> None:
    spec = op_spec("Cast")
    value = np.asarray([1e6, -1e6], np.float32)
    to = spec.evaluate([value], spec.with_defaults({"to": "float8_e4m3fn"}), Context())[0]
    assert to.astype(np.float32).tolist() == [448.0, -448.0]


def test_graph_copy_is_independent() -> None:
    graph = Graph("g")
    x = graph.add_input("x", "float32", (2,))
    y = graph.add("Neg", [x], dtype="float32", shape=(2,), since_version=13)
    graph.outputs.append(y)
    twin = graph.copy()
    twin.replace_all_uses(twin.outputs[0], twin.inputs[0])
    twin.remove(twin.nodes[0])
    assert len(graph.nodes) == 1
    assert graph.outputs == [y]
