"""Plans: memory, views, folding, dynamic shapes, what the CPU takes; the doctor."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import op_spec
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.kernels import cpu as kernels
from halfbyte.runtime import doctor, get_backend
from halfbyte.runtime.backend import WeightStore
from halfbyte.runtime.compile import compile_plan
from halfbyte.runtime.cpu import kind_of
from halfbyte.runtime.memory_plan import ALIGNMENT, Lifetime, place
from halfbyte.runtime.session import Session
from support.kernel_cases import needs_extension
from support.tiny_graphs import linear, tiny_decoder, weight


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda n, a, b: Lifetime(n, min(a, b), max(a, b)),
            st.integers(0, 1000),
            st.integers(0, 12),
            st.integers(0, 12),
        ),
        max_size=20,
    )
)
def test_values_alive_together_never_share_bytes(lifetimes: list[Lifetime]) -> None:
    offsets, size = place(lifetimes)
    for i, (start, one) in enumerate(zip(offsets, lifetimes, strict=True)):
        assert start % ALIGNMENT == 0
        assert start + one.nbytes <= size
        for other_start, other in list(zip(offsets, lifetimes, strict=True))[:i]:
            together = one.first <= other.last and other.first <= one.last
            apart = start + one.nbytes <= other_start or other_start + other.nbytes <= start
            assert apart or not together or not one.nbytes or not other.nbytes


def test_dead_values_give_their_room_back() -> None:
    chain = [Lifetime(64, i, i + 1) for i in range(10)]
    assert place(chain)[1] == 128
    assert place([]) == ([], 0)


def test_arena_does_not_grow_with_depth() -> None:
    sizes = []
    for layers in (1, 6):
        session = Session(tiny_decoder(layers=layers))
        session.run({"input_ids": [[1, 2, 3]]})
        sizes.append(next(iter(session._plans.values())).arena_bytes)
    assert sizes[0] == sizes[1]


def graph_of(
    op: str, *inputs: Any, domain: str = "", version: int = 13, **attributes: Any
) -> Graph:
    """Return one node; arrays become constants, (name, dtype, shape) inputs."""
    graph = Graph("one")
    values = []
    for index, given_ in enumerate(inputs):
        if isinstance(given_, tuple):
            values.append(graph.add_input(*given_))
        elif isinstance(given_, Tensor):
            values.append(graph.add_constant(given_))
        elif given_ is not None:
            values.append(graph.add_constant(tensor_from_array(f"c{index}", np.asarray(given_))))
        else:
            values.append(None)
    graph.insert(Node(op, values, [Value("y")], attributes, domain, version))
    graph.outputs.append(graph.nodes[0].outputs[0])
    return graph


def run(graph: Graph, device: str = "cpu", **feeds: Any) -> tuple[dict[str, Any], Session]:
    session = Session(graph, device, threads=1, fuse=False)
    return session.run(feeds), session


def test_shapes_made_at_run_time() -> None:
    graph = graph_of("Range", 0, ("limit", "int64", ()), 2, version=11)
    tail = graph.add("Neg", [graph.outputs[0]], name="z", since_version=13)
    data = graph.add_input("data", "float32", (2, 6))
    shape = graph.add_input("shape", "int64", (2,))
    graph.outputs += [tail, graph.add("Reshape", [data, shape], name="r", since_version=24)]
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    for limit in (7, 2):
        found, session = run(graph, limit=np.int64(limit), data=values, shape=[3, 4])
        assert found["y"].tolist() == list(range(0, limit, 2))
        assert found["z"].tolist() == [-i for i in range(0, limit, 2)]
        assert found["r"].shape == (3, 4)
        assert len(session.fallbacks) == 3


def test_shape_arithmetic_is_done_once() -> None:
    graph = Graph()
    x = graph.add_input("x", "float32", ("n", 4))
    half = graph.add_constant(tensor_from_array("half", np.asarray([1, 2], np.int64)))
    shape = graph.add("Shape", [x], since_version=24)
    wanted = graph.add("Div", [shape, half], since_version=14)
    target = graph.add_constant(tensor_from_array("more", np.asarray([-1], np.int64)))
    joined = graph.add("Concat", [wanted, target], since_version=13, axis=0)
    graph.outputs.append(graph.add("Reshape", [x, joined], name="y", since_version=24))
    session = Session(graph)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(session.run({"x": values})["y"], values.reshape(3, 2, 2))
    assert next(iter(session._plans.values())).steps == []


def test_outputs_may_be_inputs_constants_and_views() -> None:
    graph = graph_of("Unsqueeze", ("x", "float32", (2,)), [0], version=24)
    again = graph.add("Identity", [graph.outputs[0]], name="z", since_version=24)
    constant = graph.add_constant(tensor_from_array("k", np.ones(3, np.float16)))
    graph.outputs += [again, graph.inputs[0], constant]
    found, _ = run(graph, x=np.float32([5, 6]))
    assert found["y"].tolist() == found["z"].tolist() == [[5, 6]]
    assert found["x"].tolist() == [5, 6]
    assert found["k"].dtype == np.float16


def test_view_of_a_result_keeps_it_alive() -> None:
    graph = graph_of("Neg", ("x", "float32", (4,)))
    shape = graph.add_constant(tensor_from_array("s", np.asarray([2, 2], np.int64)))
    view = graph.add("Reshape", [graph.outputs[0], shape], name="v", since_version=24)
    later = graph.outputs[0]
    for _ in range(3):
        later = graph.add("Neg", [later], since_version=13)
    graph.outputs = [view, later]
    found, _ = run(graph, x=np.float32([1, 2, 3, 4]))
    assert found["v"].tolist() == [[-1, -2], [-3, -4]]


def test_value_without_source_is_an_error() -> None:
    graph = Graph()
    graph.insert(Node("Neg", [Value("lost", "float32", (2,))], [Value("y")], {}, "", 13))
    with pytest.raises(GraphError, match="lost: is read before any node makes it"):
        compile_plan(graph, get_backend("reference"), {})


def test_half_precision_stays_half() -> None:
    x = np.float16([1, 2, 3])
    graph = graph_of("Add", ("x", "float16", (3,)), np.float32([0.5, 0.5, 0.5]), version=14)
    found, session = run(graph, x=x)
    assert found["y"].dtype == np.float16
    assert found["y"].tolist() == [1.5, 2.5, 3.5]
    assert session.fallbacks == ["Add -> 'y'"]


F32 = ("x", "float32", (1, 2, 8))
ROW = np.ones(8, np.float32)
ANGLES = (("c", "float32", (1, 2, 2)), ("s", "float32", (1, 2, 2)))
HEADS = {"num_heads": 2, "num_kv_heads": 2}
QKV = [(name, "float32", (1, 2, 8)) for name in "qkv"]
UNCLAIMED = {
    "norm over two axes": ("RMSNormalization", [F32, np.ones((2, 8), np.float32)], {"axis": 1}),
    "scale of one value": ("RMSNormalization", [F32, np.ones(1, np.float32)], {}),
    "layer norm axis": ("LayerNormalization", [F32, np.ones((2, 8), np.float32)], {"axis": 1}),
    "integer norm sum": ("halfbyte.AddRMSNormalization", [F32, ("z", "float32", (8,)), ROW], {}),
    "layer norm sum": ("halfbyte.AddLayerNormalization", [F32, ("z", "float32", (8,)), ROW], {}),
    "sum axis": (
        "halfbyte.AddLayerNormalization",
        [F32, ("z", "float32", (1, 2, 8)), np.ones((2, 8), np.float32)],
        {"axis": 1},
    ),
    "double softmax": ("Softmax", [("x", "float64", (2, 8))], {"axis": 1}),
    "half swish": ("Swish", [("x", "float16", (2, 8))], {"alpha": 1.7}),
    "double gelu": ("Gelu", [("x", "float64", (2,))], {}),
    "double swiglu": ("halfbyte.SwiGLU", [("x", "float64", (2,)), ("z", "float64", (2,))], {}),
    "double attention": (
        "halfbyte.CachedAttention",
        [(n, "float64", (1, 2, 8)) for n in "qkv"],
        HEADS,
    ),
    "double sum": ("RMSNormalization", [("x", "float64", (2, 8)), ROW.astype(float)], {}),
    "double rope": (
        "RotaryEmbedding",
        [(n, "float64", s) for n, s in (("x", (1, 2, 8)), ("c", (1, 2, 2)), ("s", (1, 2, 2)))],
        {"num_heads": 2},
    ),
    "rope ids": (
        "RotaryEmbedding",
        [F32, ("c", "float32", (9, 2)), ("s", "float32", (9, 2)), ("i", "int64", (1, 2))],
        {"num_heads": 2},
    ),
    "rope rank 4": ("RotaryEmbedding", [("x", "float32", (1, 2, 2, 4)), *ANGLES], {}),
    "value heads of another size": (
        "halfbyte.CachedAttention",
        [*QKV[:2], ("v", "float32", (1, 2, 12))],
        HEADS,
    ),
    "mask of another length": (
        "halfbyte.CachedAttention",
        [*QKV, ("m", "int64", (1, 1))],
        {**HEADS, "causal": 0},
    ),
    "double linear": ("halfbyte.Linear", [("x", "float64", (2, 32)), weight(1, 4, 32)], {}),
    "double weight": (
        "halfbyte.Linear",
        [("x", "float32", (2, 32)), np.ones((4, 32))],
        {},
    ),
    "computed weight": (
        "halfbyte.Linear",
        [("x", "float32", (2, 32)), ("w", "float32", (4, 32))],
        {},
    ),
    "computed gate": (
        "halfbyte.LinearSwiGLU",
        [("x", "float32", (2, 32)), ("w", "float32", (4, 32)), weight(1, 4, 32)],
        {},
    ),
    "narrow ids": ("Gather", [weight(1, 4, 32), ("i", "int32", (2,))], {}),
    "columns of a table": ("Gather", [weight(1, 4, 32), ("i", "int64", (2,))], {"axis": 1}),
    "float8 cast": ("Cast", [F32], {"to": "float8_e4m3fn"}),
    "double cosine": ("Cos", [("x", "float64", (2,))], {}),
    "half addition": ("Add", [("x", "float16", (2,)), ("z", "float16", (2,))], {}),
    "integer product": ("MatMul", [("x", "int64", (2, 3)), ("z", "int64", (3, 2))], {}),
}


@pytest.mark.parametrize("name", UNCLAIMED)
def test_what_no_kernel_takes_runs_as_the_reference(name: str) -> None:
    op, inputs, attributes = UNCLAIMED[name]
    domain, _, plain = op.rpartition(".")
    version = max(v for v in op_spec(op).versions if v <= 24)
    graph = graph_of(plain, *inputs, domain=domain, version=version, **attributes)
    generator = np.random.default_rng(1)
    feeds = {
        v.name: np.zeros(v.shape, v.dtype)
        if v.dtype.startswith("int")
        else generator.standard_normal(v.shape).astype(v.dtype)
        for v in graph.inputs
    }
    for node in graph.nodes:
        if len(op_spec(op).outputs) == 2:
            node.outputs.append(Value("sum", producer=node))
    found, session = run(graph, **feeds)
    wanted, _ = run(graph, "reference", **feeds)
    assert len(session.fallbacks) == 1
    np.testing.assert_array_equal(found["y"].astype(float), wanted["y"].astype(float))


@needs_extension
def test_weights_stay_encoded_and_are_uploaded_once() -> None:
    backend = get_backend("cpu", threads=1)
    store = WeightStore(backend)
    tensor = weight(3, 8, 32, "Q4_0")
    native = store.uploaded(tensor)
    assert store.uploaded(tensor) is native
    assert native.kind == "Q4_0"
    np.testing.assert_array_equal(native.decode(), tensor.float32())
    assert store.array(tensor, np.dtype(np.float32)) is store.array(tensor, np.dtype(np.float32))


@needs_extension
@pytest.mark.parametrize(
    "name", ["float32", "float16", "bfloat16", "float8_e4m3fn", "Q4_1", "Q5_0", "int4-g32-asym"]
)
def test_encodings_with_kernels(name: str) -> None:
    tensor = weight(4, 8, 64, name)
    kind = kind_of(tensor)
    assert kind in kernels.CLAIMS["linear"]
    native = get_backend("cpu").upload(tensor)
    np.testing.assert_array_equal(native.decode(), tensor.float32())


def test_encodings_without_kernels() -> None:
    assert kind_of(tensor_from_array("w", np.ones((2, 2)))) is None
    assert kind_of(tensor_from_array("w", np.ones((2, 2), np.int8))) is None


@needs_extension
def test_thread_count_is_set_for_each_run() -> None:
    for count in (1, 2):
        run(tiny_like(count), x=np.ones((1, 32), np.float32))
        session = Session(tiny_like(count), threads=count)
        session.run({"x": np.ones((1, 32), np.float32)})
        assert kernels.threads() == count


def tiny_like(seed: int) -> Graph:
    graph = Graph()
    x = graph.add_input("x", "float32", ("n", 32))
    graph.outputs.append(linear(graph, x, weight(seed, 8, 32), "y"))
    return graph


@needs_extension
def test_doctor_reports_backends_features_and_versions() -> None:
    found = doctor.diagnose()
    assert [entry["name"] for entry in found["backends"]] == ["cpu", "cuda", "metal"]
    cpu = found["backends"][0]
    assert cpu["available"]
    assert cpu["reason"] == ""
    assert "threads" in cpu["devices"][0]
    for entry in found["backends"][1:]:
        assert not entry["available"]
        assert entry["reason"]
    assert found["features"][0] == f"cpu kernels: {kernels.isa()}"
    assert any(line.startswith("cpu linear: ") for line in found["features"])
    assert found["versions"]["numpy"] == np.__version__
    assert "halfbyte" in found["versions"]


def test_doctor_warns_where_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert doctor.kernel_features() == [doctor.NO_KERNELS]
    monkeypatch.setitem(sys.modules, "halfbyte.kernels.cpu", None)
    assert doctor.kernel_features() == [doctor.NO_KERNELS]


def test_doctor_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"name": b"Card"}
    cuda = SimpleNamespace(getDeviceCount=lambda: 1, getDeviceProperties=lambda index: properties)
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(runtime=cuda))
    found = doctor.probe("cuda")
    assert found["devices"] == ["Card"]
    assert found["reason"] == "this version has no CUDA backend"
    core = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: True), default_device=lambda: "Device(gpu, 0)"
    )
    monkeypatch.setitem(sys.modules, "mlx.core", core)
    assert doctor.probe("metal")["devices"] == ["Device(gpu, 0)"]
    core.metal.is_available = lambda: False
    assert doctor.probe("metal")["reason"] == "MLX finds no Metal device"

    def broken() -> int:
        raise RuntimeError("driver too old")

    cuda.getDeviceCount = broken
    assert doctor.probe("cuda")["reason"] == "driver too old"
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert doctor.probe("cuda")["reason"] == "cupy is not installed"
