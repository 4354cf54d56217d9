"""Fusions for general graphs: the nodes that they leave, and the same results as before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops import op_key, op_spec
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes import run_passes
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.kernels import cpu
from halfbyte.runtime.session import Session

DEVICES = ["reference", *(["cpu"] if cpu.available() else [])]


class Builder:
    """A graph of float32 nodes in their newest form."""

    def __init__(self, *shape: int) -> None:
        self.graph = Graph()
        self.x = self.graph.add_input("x", "float32", shape)
        self.generator = np.random.default_rng(5)

    def stored(self, *shape: int, low: float | None = None) -> Value:
        values = self.generator.standard_normal(shape).astype(np.float32) * np.float32(0.3)
        if low is not None:
            values = np.abs(values) + np.float32(low)
        return self.constant(values)

    def constant(self, values: object) -> Value:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = self.graph.fresh_name("c")
        return self.graph.add_constant(tensor_from_array(name, array), fixed=True)

    def __call__(self, op: str, *inputs: Value | None, **attributes: object) -> Value:
        domain, _, plain = op.rpartition(".")
        version = max(op_spec(op_key(plain, domain)).versions)
        return self.graph.add(
            plain, list(inputs), domain=domain, since_version=version, **attributes
        )

    def finish(self, *outputs: Value) -> Graph:
        self.graph.outputs = list(outputs)
        infer_types(self.graph)
        check(self.graph)
        return self.graph


def layers(*ops: str) -> tuple[str, ...]:
    return ops


def conv_batch_norm(b: Builder) -> Value:
    y = b("Conv", b.x, b.stored(6, 4, 3, 3), pads=[1, 1, 1, 1])
    y = b("BatchNormalization", y, *(b.stored(6) for _ in range(3)), b.stored(6, low=0.1))
    return b("Relu", y)


def conv_scaled(b: Builder) -> Value:
    y = b("Conv", b.x, b.stored(6, 2, 3, 3), b.stored(6), group=2)
    y = b("Mul", y, b.stored(6, 1, 1))
    y = b("Sub", b("Add", b.stored(1, 6, 1, 1), y), b.constant(0.3))
    return b("Clip", y, b.constant(-0.1), b.constant(0.4))


def transposed_batch_norm(b: Builder) -> Value:
    y = b("ConvTranspose", b.x, b.stored(4, 3, 2, 2), group=2, strides=[2, 2])
    return b("BatchNormalization", y, *(b.stored(6) for _ in range(3)), b.stored(6, low=0.1))


def residual_block(b: Builder) -> Value:
    y = b("Relu", b("Conv", b.x, b.stored(4, 4, 3, 3), pads=[1, 1, 1, 1]))
    y = b("Conv", y, b.stored(4, 4, 3, 3), b.stored(4), pads=[1, 1, 1, 1])
    return b("LeakyRelu", b("Add", y, b.x), alpha=0.2)


def padded_conv(b: Builder) -> Value:
    pads = b.constant(np.array([0, 0, 1, 0, 0, 0, 2, 3]))
    y = b("Conv", b("Pad", b.x, pads), b.stored(5, 4, 3, 3), pads=[1, 1, 0, 0], strides=[2, 2])
    return b("HardSwish", y)


def linear(b: Builder, x: Value, out: int, width: int) -> Value:
    return b("halfbyte.Linear", x, b.stored(out, width), b.stored(out))


def gelu_divided(b: Builder) -> Value:
    y = linear(b, b.x, 8, 9)
    gate = b("Add", b("Erf", b("Div", y, b.constant(2**0.5))), b.constant(1.0))
    return b("Mul", b("Mul", y, gate), b.constant(0.5))


def gelu_halved_first(b: Builder) -> Value:
    y = linear(b, b.x, 8, 9)
    gate = b("Add", b.constant(1.0), b("Erf", b("Mul", b.constant(0.5**0.5), y)))
    return b("Mul", b("Mul", y, b.constant(0.5)), gate)


def gelu_tanh(b: Builder) -> Value:
    y = linear(b, b.x, 8, 9)
    cubic = b("Mul", b("Pow", y, b.constant(3.0)), b.constant(0.044715))
    inner = b("Mul", b("Add", y, cubic), b.constant((2 / np.pi) ** 0.5))
    return b("Mul", b("Mul", b.constant(0.5), y), b("Add", b("Tanh", inner), b.constant(1.0)))


def swish(b: Builder) -> Value:
    y = b("Conv", b.x, b.stored(6, 4, 3, 3))
    return b("Mul", y, b("Sigmoid", y))


def hard_swish_by_clip(b: Builder) -> Value:
    y = b("Conv", b.x, b.stored(6, 4, 3, 3))
    gate = b("Clip", b("Add", y, b.constant(3.0)), b.constant(0.0), b.constant(6.0))
    return b("Div", b("Mul", y, gate), b.constant(6.0))


def mish(b: Builder) -> Value:
    return b("Mul", b("Tanh", b("Softplus", b.x)), b.x)


def layer_norm(b: Builder) -> Value:
    last = b.constant(np.array([-1]))
    d = b("Sub", b.x, b("ReduceMean", b.x, last))
    variance = b("ReduceMean", b("Pow", d, b.constant(2.0)), last)
    n = b("Div", d, b("Sqrt", b("Add", variance, b.constant(1e-6))))
    return b("Add", b("Mul", n, b.stored(9)), b.stored(9))


def rms_norm(b: Builder) -> Value:
    mean = b("ReduceMean", b("Mul", b.x, b.x), b.constant(np.array([-1])))
    root = b("Sqrt", b("Add", mean, b.constant(1e-5)))
    n = b("Mul", b.x, b("Div", b.constant(1.0), root))
    return b("Mul", b.stored(9), n)


def moved_twice(b: Builder) -> Value:
    y = b("Transpose", b("Transpose", b.x, perm=[0, 2, 1, 3]), perm=[0, 2, 1, 3])
    y = b("Reshape", b("Reshape", y, b.constant(np.array([2, -1]))), b.constant(np.array([4, -1])))
    return b("Identity", b("Cast", b("Dropout", b("Abs", y)), to="float32"))


IMAGE, ROWS = (2, 4, 7, 9), (2, 5, 9)
# name: builder, input shape, operators afterwards
FUSIONS: dict[str, tuple[Callable[[Builder], Value], tuple[int, ...], tuple[str, ...]]] = {
    "batch norm": (conv_batch_norm, IMAGE, layers("FusedConv")),
    "scaled": (conv_scaled, IMAGE, layers("FusedConv")),
    "transposed batch norm": (transposed_batch_norm, IMAGE, layers("ConvTranspose")),
    "residual": (residual_block, IMAGE, layers("FusedConv", "FusedConv")),
    "pad": (padded_conv, IMAGE, layers("FusedConv")),
    "gelu": (gelu_divided, ROWS, layers("FusedLinear")),
    "gelu halved first": (gelu_halved_first, ROWS, layers("FusedLinear")),
    "gelu by tanh": (gelu_tanh, ROWS, layers("FusedLinear")),
    "swish": (swish, IMAGE, layers("FusedConv")),
    "hard swish": (hard_swish_by_clip, IMAGE, layers("FusedConv")),
    "mish": (mish, ROWS, layers("Mish")),
    "layer norm": (layer_norm, ROWS, layers("LayerNormalization")),
    "rms norm": (rms_norm, ROWS, layers("RMSNormalization")),
    "moved": (moved_twice, (2, 3, 5, 4), layers("Reshape", "Abs", "Identity")),
}


def built(name: str) -> Graph:
    make, shape, _ = FUSIONS[name]
    builder = Builder(*shape)
    # A node behind it all: passes keep the names of outputs, and so the nodes that make them.
    made = make(builder)
    return builder.finish(made if name == "moved" else builder("Identity", made))


@pytest.mark.parametrize("name", FUSIONS)
def test_what_a_pattern_becomes(name: str) -> None:
    graph = built(name)
    run_passes(graph)
    check(graph)
    wanted = FUSIONS[name][2]
    found = [node.op for node in graph.nodes]
    if name == "moved":
        assert "Transpose" not in found
        assert found.count("Reshape") == 1
        return
    assert found == [*wanted, "Identity"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FUSIONS)
def test_results_stay(name: str, device: str) -> None:
    graph = built(name)
    x = np.random.default_rng(8).standard_normal(FUSIONS[name][1]).astype(np.float32) * 2
    wanted = Session(graph, "reference", fuse=False).run({"x": x})
    found = Session(graph, device, threads=2).run({"x": x})
    assert list(found) == list(wanted)
    for key, values in wanted.items():
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[key], values, rtol=0, atol=3e-6 * scale)


def test_what_others_read_stays() -> None:
    b = Builder(*IMAGE)
    y = b("Conv", b.x, b.stored(6, 4, 3, 3))
    relu = b("Relu", y)
    graph = b.finish(b("Abs", relu), b("Neg", y))
    run_passes(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "Abs", "Neg"]


def test_a_sum_that_broadcasts_is_no_residual() -> None:
    b = Builder(*IMAGE)
    y = b("Conv", b.x, b.stored(6, 4, 3, 3))
    mean = b("GlobalAveragePool", y)
    graph = b.finish(b("Abs", b("Add", b("Conv", b.x, b.stored(6, 4, 3, 3)), mean)))
    run_passes(graph)
    assert "FusedConv" not in [node.op for node in graph.nodes]


def test_a_pad_with_another_value_stays() -> None:
    b = Builder(*IMAGE)
    pads = b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    y = b("Conv", b("Pad", b.x, pads, b.constant(1.0)), b.stored(5, 4, 3, 3))
    graph = b.finish(b("Abs", y))
    run_passes(graph)
    assert [node.op for node in graph.nodes] == ["Pad", "Conv", "Abs"]
