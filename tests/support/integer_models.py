"""Small float graphs of the operators that may compute in integers, as models."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.tensor import tensor_from_array


class Net:
    """A graph made operator by operator, with random weights from a seed."""

    def __init__(self, seed: int = 5, **inputs: tuple[int | str, ...]) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = Graph("net")
        self.inputs = {n: self.graph.add_input(n, "float32", s) for n, s in inputs.items()}

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> Value:
        """Return a constant."""
        tensor = tensor_from_array(name, np.asarray(values, dtype))
        return self.graph.add_constant(tensor, name, fixed=np.dtype(dtype).kind == "i")

    def op(self, op: str, *inputs: Value | None, name: str | None = None, **held: Any) -> Value:
        """Return the result of an ai.onnx operator."""
        version = max(op_spec(op).versions)
        made = self.graph.add(op, inputs, name=name, since_version=version, **held)
        infer_types(self.graph)
        return made

    def conv(
        self, x: Value, out: int, kernel: int = 3, group: int = 1, name: str = "conv", **held: Any
    ) -> Value:
        """Return a convolution with a bias, of the size of its input."""
        channels = (x.shape or (0, 1))[1]
        assert isinstance(channels, int)
        dims = (out, channels // group, *[kernel] * (len(x.shape or ()) - 2))
        scale = 1 / np.sqrt(np.prod(dims[1:]))
        weight = self.constant(f"{name}.weight", self.random.standard_normal(dims) * scale)
        bias = self.constant(f"{name}.bias", self.random.standard_normal(out) * 0.1)
        pads = [kernel // 2] * (2 * (len(dims) - 2))
        return self.op("Conv", x, weight, bias, name=name, group=group, pads=pads, **held)

    def linear(self, x: Value, out: int, name: str = "fc", bias: bool = True) -> Value:
        """Return a Linear."""
        width = (x.shape or (0,))[-1]
        assert isinstance(width, int)
        weight = self.random.standard_normal((out, width)) / np.sqrt(width)
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias:
            inputs.append(self.constant(f"{name}.bias", self.random.standard_normal(out)))
        made = self.graph.add("Linear", inputs, name=name, domain="halfbyte", dtype="float32")
        infer_types(self.graph)
        return made

    def done(self, *outputs: Value) -> Model:
        """Return the model."""
        self.graph.outputs = list(outputs)
        weights = dict(self.graph.constants)
        return Model(
            weights,
            provenance=Provenance("onnx", "net"),
            build=lambda model: self.graph.copy(),
        )


def residual_net(batch: int | str = "batch") -> Model:
    """Return convolutions, a residual sum, pools, a depthwise one and a head."""
    net = Net(image=(batch, 3, 12, 12))
    x = net.op("Relu", net.conv(net.inputs["image"], 8, name="stem"))
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name="pool")
    y = net.op("Relu", net.conv(pooled, 8, group=8, name="depthwise"))
    y = net.conv(y, 8, 1, name="point")
    total = net.op("Relu", net.op("Add", y, pooled, name="sum"), name="total")
    left, right = net.conv(total, 4, 1, name="left"), net.conv(total, 6, 3, name="right")
    joined = net.op("Concat", left, right, axis=1, name="joined")
    low, high = net.constant("low", 0.0), net.constant("high", 6.0)
    last = net.op("Clip", net.conv(joined, 16, name="last"), low, high, name="clipped")
    flat = net.op("Flatten", net.op("GlobalAveragePool", last, name="mean"), name="flat")
    return net.done(net.linear(flat, 5, "head"))


def token_net(batch: int | str = 1, bias: bool = True) -> Model:
    """Return a block of an encoder over [batch, 6, 16]: norm, three products, gelu, a sum."""
    net = Net(tokens=(batch, 6, 16))
    x = net.inputs["tokens"]
    scale, shift = net.constant("scale", np.ones(16)), net.constant("shift", np.zeros(16))
    normed = net.op("LayerNormalization", x, scale, shift, axis=-1, name="normed")
    query, key = net.linear(normed, 16, "query", bias), net.linear(normed, 16, "key", bias)
    turned = net.op("Transpose", key, perm=[0, 2, 1])
    shares = net.op("Softmax", net.op("MatMul", query, turned), axis=-1)
    mixed = net.op("MatMul", shares, net.linear(normed, 16, "value", bias))
    x = net.op("Add", x, net.linear(mixed, 16, "out", bias), name="residual")
    wide = net.op("Relu", net.linear(x, 32, "up", bias))
    return net.done(net.op("Add", x, net.linear(wide, 16, "down", bias), name="result"))


def samples(model: Model, count: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Return smooth random inputs, one sample each."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        found = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
            drawn = random.standard_normal(shape).cumsum(-1) * 0.3 + random.standard_normal() * 0.2
            found[value.name] = drawn.astype(np.float32)
        made.append(found)
    return made
