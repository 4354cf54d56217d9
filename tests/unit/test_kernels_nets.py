"""Products, elementwise functions, reductions and recurrence against float64 numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from halfbyte.kernels import cpu, cpu_nets
from halfbyte.kernels.cpu_nets import Activation, PackedMatrix, Product, RecurrentWeights
from support.kernel_cases import needs_extension

pytestmark = needs_extension


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("m", [1, 2, 5, 6, 7, 13, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (16, 40), (33, 300), (130, 257)])
def test_product(m: int, n: int, k: int) -> None:
    a, b, bias, residual = normal(m, k), normal(k, n, seed=4), normal(n, seed=5), normal(m, n)
    wanted = a.astype(np.float64) @ b
    bound = 2e-6 * math.sqrt(k) * 4
    out = np.empty((m, n), np.float32)
    turned = np.ascontiguousarray(b.T)
    ways = (
        Product(m, n, k)(a, b, out.copy()),
        Product(m, n, k, transposed=True)(a, turned, out.copy()),
        Product(m, n, k, packed=PackedMatrix(b))(a, None, out.copy()),
        Product(m, n, k, packed=PackedMatrix(turned, True))(a, None, out.copy()),
    )
    for found in ways:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)
        np.testing.assert_array_equal(found, ways[0])
    for activation, function in (("relu", lambda v: np.maximum(v, 0)), ("tanh", np.tanh)):
        fused = Product(m, n, k, bias=bias, activation=Activation(activation))
        found = fused(a, b, out.copy(), residual)
        np.testing.assert_allclose(found, function(wanted + bias + residual), rtol=0, atol=bound)


def test_a_row_of_a_product_depends_neither_on_the_batch_nor_on_threads() -> None:
    a, packed = normal(50, 300), PackedMatrix(normal(300, 210, seed=4))
    whole = Product(50, 210, 300, packed=packed)(a, None, np.empty((50, 210), np.float32))
    row = Product(1, 210, 300, packed=packed)(a[7:8], None, np.empty((1, 210), np.float32))
    np.testing.assert_array_equal(row, whole[7:8])
    before = cpu.threads()
    try:
        cpu.set_threads(3)
        again = Product(50, 210, 300, packed=packed)(a, None, np.empty((50, 210), np.float32))
    finally:
        cpu.set_threads(before)
    np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 5, 7), (7, 9)), ((2, 3, 50, 70), (2, 3, 70, 40)), ((4, 1, 6, 30), (1, 5, 30, 33))],
)
def test_matmul_broadcasts(left, right) -> None:
    a, b = normal(*left), normal(*right, seed=4)
    np.testing.assert_allclose(cpu_nets.matmul(a, b), a.astype(np.float64) @ b, rtol=0, atol=4e-5)


WIDE = np.concatenate([np.linspace(-30, 30, 4001), [0.0, -0.0]]).astype(np.float32)
UNARY = {
    "relu": (Activation("relu"), lambda x: np.maximum(x, 0)),
    "leaky_relu": (Activation("leaky_relu", 0.1), lambda x: np.where(x < 0, 0.1 * x, x)),
    "clip": (Activation("clip", -1.5, 6.0), lambda x: np.clip(x, -1.5, 6)),
    "sigmoid": (Activation("sigmoid"), lambda x: 1 / (1 + np.exp(-x))),
    "hard_sigmoid": (Activation("hard_sigmoid", 0.2, 0.5), lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "hard_swish": (Activation("hard_swish"), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "swish": (Activation("swish", 1.7), lambda x: x / (1 + np.exp(-1.7 * x))),
    "tanh": (Activation("tanh"), np.tanh),
    "elu": (Activation("elu", 0.7), lambda x: np.where(x < 0, 0.7 * np.expm1(x), x)),
    "softplus": (Activation("softplus"), lambda x: np.logaddexp(0, x)),
    "mish": (Activation("mish"), lambda x: x * np.tanh(np.logaddexp(0, x))),
    "exp": (Activation("exp"), np.exp),
    "erf": (Activation("erf"), np.vectorize(math.erf)),
    "abs": (Activation("abs"), np.abs),
    "neg": (Activation("neg"), np.negative),
    "floor": (Activation("floor"), np.floor),
    "ceil": (Activation("ceil"), np.ceil),
    "round": (Activation("round"), np.rint),
    "gelu_erf": (
        Activation("gelu_erf"),
        lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    ),
    "gelu_tanh": (
        Activation("gelu_tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    activation, function = UNARY[name]
    wanted = function(WIDE.astype(np.float64))
    np.testing.assert_allclose(cpu_nets.unary(WIDE, activation), wanted, rtol=2e-6, atol=2e-6)
    found = cpu_nets.unary(np.full(9, np.nan, np.float32), activation)
    assert np.isnan(found).all()


def test_every_unary_function_is_tested_or_plain() -> None:
    assert set(cpu_nets.UNARY) - set(UNARY) == {"none", "log", "sqrt", "reciprocal"}
    x = np.abs(WIDE) + np.float32(0.1)
    for name, function in (("log", np.log), ("sqrt", np.sqrt), ("reciprocal", lambda v: 1 / v)):
        found = cpu_nets.unary(x, Activation(name))
        np.testing.assert_allclose(found, function(x.astype(np.float64)), rtol=2e-7, atol=1e-7)


SHAPES = [
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 4, 5), (5,)),
    ((1, 3, 1, 5), (2, 1, 4, 1)),
    ((), (3,)),
    ((70, 1), (1, 90)),
    ((0, 3), (3,)),
    ((2, 40000), (2, 40000)),
]
NUMPY = (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_binary(left, right) -> None:
    a, b = np.asarray(normal(*left)), np.asarray(normal(*right, seed=4))
    for name, function in zip(cpu_nets.BINARY, NUMPY, strict=True):
        for x, y in ((a, b), (b, a)):
            np.testing.assert_array_equal(cpu_nets.binary(name, x, y), function(x, y))


def test_maximum_and_minimum_keep_nan() -> None:
    x = normal(20)
    x[3], y = np.nan, normal(20, seed=4)
    for name, left, right in itertools.product(("max", "min"), (x, y), (x, y)):
        assert np.isnan(cpu_nets.binary(name, left, right)).any() == (left is x or right is x)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::3])
def test_transpose(order) -> None:
    for shape in ((3, 4, 5, 6), (2, 17, 9, 16), (1, 8, 1, 24)):
        x = normal(*shape)
        np.testing.assert_array_equal(cpu_nets.transpose(x, order), x.transpose(order))


@pytest.mark.parametrize(("n", "inner"), [(1, 1), (7, 1), (100, 1), (5, 3), (9, 40), (3, 1001)])
def test_reductions_and_softmax(n: int, inner: int) -> None:
    x = normal(4, n, inner)
    wide = x.astype(np.float64)
    for kind, wanted in (("sum", wide.sum(1)), ("mean", wide.mean(1)), ("max", wide.max(1))):
        found = cpu_nets.reduce_axis(x, n, inner, kind).reshape(4, inner)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    weights = np.exp(wide - wide.max(1, keepdims=True))
    found = cpu_nets.softmax_axis(x, n, inner)
    np.testing.assert_allclose(found, weights / weights.sum(1, keepdims=True), rtol=2e-6, atol=1e-9)
    x[1, n - 1, inner - 1] = np.nan
    assert np.isnan(cpu_nets.reduce_axis(x, n, inner, "max")).sum() == 1


@pytest.mark.parametrize("n", [1, 9, 200])
def test_normalize(n: int) -> None:
    x, scale, shift = normal(6, n), normal(3, seed=4), normal(3, seed=5)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    wanted = wanted * np.tile(scale, 2)[:, None] + np.tile(shift, 2)[:, None]
    found = cpu_nets.normalize(x, n, scale, shift, 1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("inner", [1, 5, 19])
def test_resample(taps: int, inner: int) -> None:
    x, generator = normal(3, 11, inner), np.random.default_rng(5)
    indices = generator.integers(0, 11, (17, taps))
    weights = normal(17, taps, seed=6)
    out = np.empty((3, 17, inner), np.float32)
    cpu_nets.resample(x, 11, inner, indices, weights, out)
    wanted = np.einsum("omti,mt->omi", x.astype(np.float64)[:, indices], weights)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="an index is outside the axis"):
        cpu_nets.resample(x, 11, inner, indices + 11, weights, out)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_sequence(gates, r, h, c, holes):
    found = []
    for g in gates.astype(np.float64):
        i, o, f, cell = np.split(g + h @ r.T, 4, axis=1)
        i, f = sigmoid(i + holes[0] * c), sigmoid(f + holes[2] * c)
        c = f * c + i * np.tanh(cell)
        h = sigmoid(o + holes[1] * c) * np.tanh(c)
        found.append(h)
    return np.array(found), h, c


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize(("batch", "hidden"), [(1, 5), (1, 64), (3, 40), (2, 300)])
def test_lstm(batch: int, hidden: int, peepholes: bool) -> None:
    gates, r = normal(6, batch, 4 * hidden), normal(4 * hidden, hidden, seed=4) / np.float32(8)
    h, c = normal(batch, hidden, seed=5), normal(batch, hidden, seed=6)
    holes = normal(3, hidden, seed=7) if peepholes else np.zeros((3, hidden), np.float32)
    wanted = lstm_sequence(gates, r, h.astype(np.float64), c.astype(np.float64), holes)
    y = np.zeros((6, 2, batch, hidden), np.float32)
    given = holes.reshape(-1) if peepholes else None
    weights = RecurrentWeights(PackedMatrix(r, True), peepholes=given)
    size = batch * hidden
    cpu_nets.recurrent(weights, gates.copy(), h, c, y, y_offset=size, y_step=2 * size)
    np.testing.assert_allclose(y[:, 1], wanted[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(h, wanted[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(c, wanted[2], rtol=0, atol=1e-5)
    assert not y[:, 0].any()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("batch", "hidden"), [(1, 5), (3, 40)])
def test_gru_backwards(batch: int, hidden: int, after: bool) -> None:
    gates, r = normal(6, batch, 3 * hidden), normal(3 * hidden, hidden, seed=4) / np.float32(4)
    bias, h = normal(hidden, seed=8), normal(batch, hidden, seed=5)
    state, wanted = h.astype(np.float64), np.zeros((6, batch, hidden))
    for step in reversed(range(6)):
        z, reset, fresh = np.split(gates[step].astype(np.float64), 3, axis=1)
        z = sigmoid(z + state @ r[:hidden].T)
        reset = sigmoid(reset + state @ r[hidden : 2 * hidden].T)
        last = r[2 * hidden :].T
        fresh += reset * (state @ last + bias) if after else (reset * state) @ last
        state = (1 - z) * np.tanh(fresh) + z * state
        wanted[step] = state
    y = np.zeros((6, batch, hidden), np.float32)
    weights = RecurrentWeights(
        PackedMatrix(r[: 2 * hidden], True),
        PackedMatrix(r[2 * hidden :], True),
        h_bias=bias if after else None,
    )
    cpu_nets.recurrent(
        weights,
        gates.copy(),
        h,
        y=y,
        y_step=batch * hidden,
        reverse=True,
        linear_before_reset=after,
    )
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(h, wanted[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("n", "inner", "k"), [(1, 1, 1), (40, 3, 7), (300, 1, 300), (5, 2, 0)])
def test_top_k(n: int, inner: int, k: int, largest: bool) -> None:
    # Few distinct values: of equals the first comes first.
    x = np.round(normal(4, n, inner))
    x[1, n // 2] = np.nan
    values, places = np.empty((4, k, inner), np.float32), np.empty((4, k, inner), np.int64)
    cpu_nets.top_k(x, n, inner, k, largest, values, places)
    keys = np.where(np.isnan(x), np.inf, x) * (-1 if largest else 1)
    wanted = np.argsort(keys, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_gather_elements(dtype: type) -> None:
    x = (normal(3, 5, 2) * 100).astype(dtype)
    indices = np.random.default_rng(1).integers(-5, 5, (3, 7, 2))
    out = np.empty((3, 7, 2), dtype)
    cpu_nets.gather_elements(x, 5, 2, indices, out)
    np.testing.assert_array_equal(out, np.take_along_axis(x, indices, 1))
    for bad in (5, -6):
        with pytest.raises(IndexError, match=r"outside -5\.\.4"):
            cpu_nets.gather_elements(x, 5, 2, np.full((3, 7, 2), bad), out)
