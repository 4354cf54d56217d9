"""Convolutions against plain loops, their adjoint, and values derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops import convolution
from halfbyte.ir.ops.spec import UNKNOWN, generator, normal
from support.op_evaluation import evaluated_one, inferred


def looped(x, w, bias=None, *, strides, dilations, pads, group=1) -> np.ndarray:
    """Return a convolution by a loop over output positions and groups."""
    rank = x.ndim - 2
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extent = [(w.shape[2 + i] - 1) * dilations[i] + 1 for i in range(rank)]
    sides = [(x.shape[2 + i] - extent[i]) // strides[i] + 1 for i in range(rank)]
    out = np.zeros((x.shape[0], w.shape[0], *sides))
    ins, outs = w.shape[1], w.shape[0] // group
    for place in np.ndindex(*sides):
        cut = tuple(
            slice(p * s, p * s + e, d)
            for p, s, e, d in zip(place, strides, extent, dilations, strict=True)
        )
        for g in range(group):
            patch = x[(slice(None), slice(g * ins, (g + 1) * ins), *cut)]
            kernel = w[g * outs : (g + 1) * outs].astype(np.float64)
            total = patch.reshape(len(x), kernel[0].size) @ kernel.reshape(outs, -1).T
            out[(slice(None), slice(g * outs, (g + 1) * outs), *place)] = total
    if bias is not None:
        out += bias.reshape(-1, *(1,) * rank)
    return out


CUBE = {"strides": [2, 1, 1], "dilations": [1] * 3, "pads": [1] * 6}
CONFIGURATIONS = [
    ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}),
    ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [2, 3], "dilations": [1, 1], "pads": [2, 0, 1, 3]}),
    ((1, 4, 9, 9), (6, 2, 3, 3), {"strides": [1, 2], "dilations": [2, 3], "pads": [1, 2, 0, 1]}),
    ((1, 4, 8), (4, 1, 5), {"strides": [1], "dilations": [1], "pads": [4, 0]}),
    (
        (1, 2, 4, 5, 3),
        (3, 2, 2, 3, 1),
        CUBE,
    ),
    ((1, 2, 2, 2), (3, 2, 5, 5), {"strides": [1, 1], "dilations": [1, 1], "pads": [2, 2, 2, 2]}),
    ((0, 3, 5, 5), (2, 3, 3, 3), {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONFIGURATIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_conv_is_the_loop(x: tuple, w: tuple, attributes: dict, dtype: type) -> None:
    data, weight, bias = (normal(i, *s).astype(dtype) for i, s in enumerate((x, w, (w[0],))))
    group = x[1] // w[1]
    result = evaluated_one("Conv", data, weight, bias, group=group, **attributes)
    wanted = looped(data, weight, bias, group=group, **attributes)
    assert result.dtype == dtype
    np.testing.assert_allclose(
        result, wanted.astype(dtype), rtol=2e-3 if dtype == np.float16 else 1e-6
    )


def test_many_products_run_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    data, weight = normal(1, 2, 8, 9, 9), normal(2, 6, 4, 3, 3)
    exact = evaluated_one("Conv", data, weight, group=2)
    monkeypatch.setattr(convolution, "UNFOLDED_BYTES", 9 * 8 * 8 * 7 * 2)
    np.testing.assert_array_equal(evaluated_one("Conv", data, weight, group=2), exact)
    monkeypatch.setattr(convolution, "WIDE_PRODUCTS", 0)
    quick = evaluated_one("Conv", data, weight, group=2)
    assert quick.dtype == np.float32
    np.testing.assert_allclose(quick, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "begin", "end"), [("SAME_UPPER", 1, 2), ("SAME_LOWER", 2, 1), ("VALID", 0, 0)]
)
def test_automatic_padding(mode: str, begin: int, end: int) -> None:
    # 7 positions, stride 2, kernel 4: 4 outputs need (4 - 1) * 2 + 4 - 7 = 3 more positions.
    data, weight = normal(3, 1, 2, 7), normal(4, 2, 2, 4)
    result = evaluated_one("Conv", data, weight, auto_pad=mode, strides=[2])
    wanted = looped(data, weight, strides=[2], dilations=[1], pads=[begin, end])
    np.testing.assert_allclose(result, wanted, rtol=1e-5)


def test_empty_output_and_kernel_without_room() -> None:
    assert evaluated_one("Conv", normal(1, 1, 1, 2), normal(2, 1, 1, 5)).shape == (1, 1, 0)


@pytest.mark.parametrize(("x", "w", "attributes"), CONFIGURATIONS[:5])
def test_transpose_is_the_adjoint_of_conv(x: tuple, w: tuple, attributes: dict) -> None:
    group = x[1] // w[1]
    data, weight = (normal(i, *s).astype(np.float64) for i, s in enumerate((x, w)))
    forward = evaluated_one("Conv", data, weight, group=group, **attributes)
    other = normal(7, *forward.shape).astype(np.float64)
    rank = len(x) - 2
    back = evaluated_one("ConvTranspose", other, weight, group=group, **attributes)
    short = [a - b for a, b in zip(x[2:], back.shape[2:], strict=True)]
    assert min(short) >= 0
    back = evaluated_one(
        "ConvTranspose", other, weight, group=group, output_padding=short, **attributes
    )
    assert back.shape == x
    np.testing.assert_allclose((forward * other).sum(), (data * back).sum(), rtol=1e-9)
    bias = np.arange(x[1], dtype=np.float64)
    shifted = evaluated_one(
        "ConvTranspose", other, weight, bias, group=group, output_padding=short, **attributes
    )
    np.testing.assert_allclose(shifted - back, np.broadcast_to(bias.reshape(-1, *(1,) * rank), x))


def test_transpose_spreads_each_value_over_a_window() -> None:
    data, weight = np.float32([[[1, 10]]]), np.float32([[[1, 2, 3]]])
    spread = evaluated_one("ConvTranspose", data, weight, strides=[2])
    assert spread.tolist() == [[[1, 2, 13, 20, 30]]]
    same = {"strides": [2], "auto_pad": "SAME_UPPER"}
    assert evaluated_one("ConvTranspose", data, weight, **same).tolist() == [[[1, 2, 13, 20]]]
    same["auto_pad"] = "SAME_LOWER"
    assert evaluated_one("ConvTranspose", data, weight, **same).tolist() == [[[2, 13, 20, 30]]]
    long = evaluated_one("ConvTranspose", data, weight, strides=[2], output_shape=[7])
    assert long.tolist() == [[[1, 2, 13, 20, 30, 0, 0]]]
    short = evaluated_one("ConvTranspose", data, weight, strides=[2], output_shape=[3])
    assert short.tolist() == [[[2, 13, 20]]]


def integers(seed: int, dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return generator(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("types", [(np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8)])
def test_integer_conv_is_exact(types: tuple) -> None:
    data, weight = integers(1, types[0], 2, 40, 6, 6), integers(2, types[1], 4, 20, 3, 3)
    x_zero, w_zero = types[0](7), integers(3, types[1], 4)
    given = {"strides": [1, 2], "dilations": [1, 1], "pads": [1, 0, 1, 2], "group": 2}
    result = evaluated_one("ConvInteger", data, weight, x_zero, w_zero, **given)
    shifted = (
        data.astype(np.int64) - int(x_zero),
        weight.astype(np.int64) - w_zero.astype(np.int64).reshape(-1, 1, 1, 1),
    )
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, looped(*shifted, **given).astype(np.int64))


def test_quantized_conv_scales_rounds_to_even_and_clips() -> None:
    data = np.uint8([[[130, 131, 133, 255]]])
    weight = np.int8([[[1]], [[100]]])
    half, zero = np.float32(0.5), np.uint8(128)
    result = evaluated_one(
        *("QLinearConv", data, half, zero, weight, np.float32([1, 1]), np.int8([0, 0])),
        *(np.float32(1), np.uint8(10), np.int32([1, 0])),
    )
    # (2, 3, 5, 127) + 1 = 3, 4, 6, 128, halved: 1.5, 2, 3, 64; the other hits the limit
    assert result.tolist() == [[[12, 12, 13, 74], [110, 160, 255, 255]]]
    assert result.dtype == np.uint8


def test_shapes_with_symbols() -> None:
    x, w = Value("x", "float32", ("n", 3, "h", 9)), Value("w", "float32", (8, 3, 3, 3))
    kept = inferred("Conv", x, w, pads=[1, 1, 1, 1])[0]
    assert kept.shape == ("n", 8, "h", 9)
    assert inferred("Conv", x, w)[0].shape == ("n", 8, UNKNOWN, 7)
    assert inferred("Conv", x, w, strides=[2, 2], pads=[1] * 4)[0].shape == ("n", 8, UNKNOWN, 5)
    assert inferred("Conv", x, w, auto_pad="SAME_UPPER")[0].shape == ("n", 8, "h", 9)
    assert inferred("Conv", Value("x", "float32"), w)[0].shape is None
    t = Value("w", "float32", (3, 4, 2, 2))
    assert inferred("ConvTranspose", x, t)[0].shape == ("n", 4, UNKNOWN, UNKNOWN)
    assert inferred("ConvTranspose", x, t, output_shape=[5, 6])[0].shape == ("n", 4, 5, 6)
    assert inferred("ConvTranspose", Value("x", "float32"), t)[0].shape is None
    unknown = Value("w", "float32", (8, 3, "k", 3))
    assert inferred("Conv", x, unknown)[0].shape == ("n", 8, UNKNOWN, 7)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "rule"),
    [
        ("Conv", [(1, 3, 5, 5), (2, 4, 3, 3)], {}, "3 channels meet a weight for 4"),
        ("Conv", [(1, 4, 5, 5), (3, 2, 3, 3)], {"group": 2}, "3 outputs are no multiple of 2"),
        ("Conv", [(1, 3, 5), (2, 3, 3, 3)], {}, "ranks are 3 and 4"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"pads": [1]}, "pads has 1 values, 2 required"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"strides": [0]}, "values of at least 1"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"pads": [-1, 0]}, "values of at least 0"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"group": 0}, "group is 0; give at least 1"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"auto_pad": "SAME"}, "auto_pad is 'SAME'"),
        ("Conv", [(1, 3, 5), (2, 3, 3)], {"kernel_shape": [2]}, "the weight has"),
        ("ConvTranspose", [(1, 3, 5), (2, 3, 3)], {}, "3 channels meet a weight for 2"),
        ("ConvTranspose", [(1, 3, 5), (3, 3)], {}, "ranks are 3 and 2"),
    ],
)
def test_broken_rules(op: str, shapes: list, attributes: dict, rule: str) -> None:
    values = [Value("v", "float32", shape) for shape in shapes]
    with pytest.raises(GraphError, match=rule):
        inferred(op, *values, **attributes)
