"""Integer kernels against plain numpy, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.kernels import cpu, cpu_integers
from halfbyte.kernels.cpu_integers import ByteConvolution, ByteProduct, Finish, Geometry
from support.kernel_cases import needs_extension

pytestmark = needs_extension
RNG = np.random.default_rng(0)
BYTES = [np.uint8, np.int8]


def random_bytes(dtype, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8).view(dtype)


# 0: any bytes; 1: no two neighbours saturate 16 bits on AVX2; 2: no four do; 1.5: few do.
LEVELS = [0, 1, 1.5, 2]


def random_weights(level: float, *shape: int) -> np.ndarray:
    if level == 1.5:
        return np.clip(RNG.standard_normal(shape) * 22, -128, 127).astype(np.int8)
    most = {0: 128, 1: 64, 2: 32}[int(level)]
    return RNG.integers(-most, min(most + 1, 128), shape).astype(np.int8)


def zeros_for(count: int, wanted: bool) -> np.ndarray | None:
    return RNG.integers(-5, 6, count).astype(np.int32) if wanted else None


def finished(sums: np.ndarray, scale: np.ndarray, limits, zero: int, dtype) -> np.ndarray:
    values = np.clip(sums.astype(np.float32) * scale, *limits)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values) + zero, info.min, info.max).astype(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weight_zero", [False, True])
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("m", "k", "n"), [(3, 5, 7), (17, 64, 130), (49, 576, 100), (1, 33, 1)])
def test_products(m: int, k: int, n: int, dtype, weight_zero: bool, level: float) -> None:
    x, weight = random_bytes(dtype, m, k), random_weights(level, n, k)
    zero, bias = zeros_for(n, weight_zero), RNG.integers(-1000, 1000, n).astype(np.int32)
    moved = weight.astype(np.int64) - (0 if zero is None else zero[:, None])
    sums = (x.astype(np.int64) - 7) @ moved.T + bias
    scale = (RNG.random(n) * 1e-3).astype(np.float32)
    out = ByteProduct(weight, True, zero)(x, 7, Finish(scale), np.empty((m, n), np.float32), bias)
    np.testing.assert_array_equal(out, sums.astype(np.float32) * scale)
    whole = ByteProduct(weight, True, zero)(x, 7, Finish(scale), np.empty((m, n), np.int32), bias)
    np.testing.assert_array_equal(whole, sums)
    columns = ByteProduct(np.ascontiguousarray(weight.T), False, zero)
    for result in BYTES:
        limits = (-20.0, 60.0)
        rounded = columns(x, 7, Finish(scale, None, limits, 3), np.empty((m, n), result), bias)
        np.testing.assert_array_equal(rounded, finished(sums, scale, limits, 3, result))


def convolved(x: np.ndarray, weight: np.ndarray, geometry: Geometry, out_size) -> np.ndarray:
    """Return the integer convolution; x is already padded at the top and left."""
    outs, per_group, kh, kw = weight.shape
    batch, of_group = len(x), outs // geometry.groups
    result = np.zeros((batch, outs, *out_size), np.int64)
    (sh, sw), (dh, dw) = geometry.strides, geometry.dilations
    for y, column in np.ndindex(kh, kw):
        rows = y * dh + sh * np.arange(out_size[0])
        columns = column * dw + sw * np.arange(out_size[1])
        seen = x[:, :, rows][:, :, :, columns]
        for group in range(geometry.groups):
            part = seen[:, group * per_group : (group + 1) * per_group]
            chosen = slice(group * of_group, (group + 1) * of_group)
            filters = weight[chosen, :, y, column]
            result[:, chosen] += np.einsum("bchw,oc->bohw", part, filters)
    return result


CONVOLUTIONS = [
    ((1, 3, 9, 11), (5, 3, 3, 3), Geometry(pads=(1, 1))),
    ((2, 8, 13, 7), (16, 8, 1, 1), Geometry()),
    ((1, 8, 20, 33), (12, 4, 3, 2), Geometry((2, 3), (1, 2), (2, 1), 2)),
    ((2, 6, 17, 40), (6, 1, 3, 3), Geometry((2, 2), (1, 1), (1, 1), 6)),
    ((1, 4, 9, 9), (8, 1, 5, 5), Geometry((1, 1), (1, 1), (2, 2), 4)),
    ((1, 16, 30, 30), (50, 16, 3, 3), Geometry(pads=(1, 1))),
    ((1, 3, 19, 21), (9, 3, 7, 7), Geometry((2, 2), (1, 1), (3, 3))),
    ((1, 1, 1, 90), (6, 1, 1, 32), Geometry((1, 8), (1, 1), (0, 5))),
    ((2, 5, 3, 3), (17, 5, 3, 3), Geometry(pads=(1, 1))),
    ((1, 3, 12, 18), (3, 1, 3, 7), Geometry((1, 3), (2, 2), (1, 4), 3)),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weight_zero", [False, True])
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), CONVOLUTIONS)
def test_convolutions(
    x_shape, w_shape, geometry: Geometry, dtype, weight_zero: bool, level
) -> None:
    x, weight = random_bytes(dtype, *x_shape), random_weights(level, *w_shape)
    zero, bias = zeros_for(len(weight), weight_zero), RNG.integers(-99, 99, len(weight))
    top, left = geometry.pads
    padded = np.pad(x.astype(np.int64) - 11, [(0, 0), (0, 0), (top, top), (left, left)])
    sizes = [
        (padded.shape[2 + i] - (w_shape[2 + i] - 1) * geometry.dilations[i] - 1)
        // geometry.strides[i]
        + 1
        for i in range(2)
    ]
    moved = weight.astype(np.int64) - (0 if zero is None else zero[:, None, None, None])
    sums = convolved(padded, moved, geometry, sizes) + bias[:, None, None]
    scale = (RNG.random(len(weight)) * 1e-3).astype(np.float32)
    filters = ByteConvolution(weight, geometry, zero)
    bias = bias.astype(np.int32)
    out = filters(x, 11, Finish(scale), np.empty(sums.shape, np.float32), bias)
    per_channel = scale[:, None, None]
    np.testing.assert_array_equal(out, sums.astype(np.float32) * per_channel)
    whole = filters(x, 11, Finish(scale), np.empty(sums.shape, np.int32), bias)
    np.testing.assert_array_equal(whole, sums)
    for result in BYTES:
        rounded = filters(x, 11, Finish(scale, zero=-9), np.empty(sums.shape, result), bias)
        expected = finished(sums, per_channel, (-np.inf, np.inf), -9, result)
        np.testing.assert_array_equal(rounded, expected)


def test_results_do_not_depend_on_threads() -> None:
    x, weight = random_bytes(np.uint8, 1, 16, 40, 40), random_bytes(np.int8, 96, 16, 3, 3)
    filters = ByteConvolution(weight, Geometry(pads=(1, 1)))
    finish, held = Finish(np.full(96, 1e-3, np.float32), zero=128), cpu.threads()
    results = []
    try:
        for count in (1, 2, 3):
            cpu.set_threads(count)
            results.append(filters(x, 3, finish, np.empty((1, 96, 40, 40), np.uint8)).tobytes())
    finally:
        cpu.set_threads(held)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("size", [0, 1, 7, 64, 1003])
@pytest.mark.parametrize("dtype", BYTES)
def test_quantize_and_dequantize(dtype, size: int) -> None:
    x = (RNG.standard_normal(size) * 10).astype(np.float32)
    info, scale = np.iinfo(dtype), np.float32(0.05)
    out = cpu_integers.quantize(x, scale, 3, np.empty(size, dtype))
    np.testing.assert_array_equal(out, np.clip(np.rint(x / scale) + 3, info.min, info.max))
    back = cpu_integers.dequantize(out, scale, 3, np.empty(size, np.float32))
    np.testing.assert_array_equal(back, (out.astype(np.float32) - 3) * scale)


def test_ties_round_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    out = cpu_integers.quantize(x, 1.0, 0, np.empty(5, np.int8))
    assert out.tolist() == [0, 2, 2, 0, -2]


def test_the_range_includes_zero() -> None:
    x = np.linspace(1.0, 5.0, 1003, dtype=np.float32)
    assert cpu_integers.value_range(x) == (0.0, 5.0)
    assert cpu_integers.value_range(-x) == (-5.0, 0.0)


@pytest.mark.parametrize("size", [77, 5, 64])
@pytest.mark.parametrize("dtypes", [(np.uint8, np.int8, np.uint8), (np.int8, np.uint8, np.int8)])
def test_sums_of_bytes(dtypes, size: int) -> None:
    a, b = random_bytes(dtypes[0], size), random_bytes(dtypes[1], size)
    scales, zeros, out = (0.0513, 0.0307, 0.0411), (5, -3, 4), np.empty(size, dtypes[2])
    cpu_integers.add(a, b, scales, zeros, (0.0, 6.0), out)
    unit = np.array(scales, np.float32)
    wide = (a.astype(np.float32) - 5) * unit[0] + (b.astype(np.float32) + 3) * unit[1]
    info = np.iinfo(dtypes[2])
    expected = np.rint(np.clip(wide, 0, 6) / unit[2]) + 4
    np.testing.assert_array_equal(out, np.clip(expected, info.min, info.max))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_greatest_activations_do_not_saturate(level: int) -> None:
    top = {0: 127, 1: 64, 2: 32}[level]
    x = np.full((5, 64), 255, np.uint8)
    for value in (top, -top, -128 if level == 0 else -top):
        weight = np.full((9, 64), value, np.int8)
        out = ByteProduct(weight, True)(x, 0, Finish(np.ones(9, np.float32)), np.empty((5, 9), "i"))
        assert np.all(out == 255 * 64 * value)
        filters = ByteConvolution(weight.reshape(9, 64, 1, 1), Geometry())
        image = np.full((1, 64, 3, 5), 255, np.uint8)
        sums = filters(image, 0, Finish(np.ones(9, np.float32)), np.empty((1, 9, 3, 5), np.int32))
        assert np.all(sums == 255 * 64 * value)


def test_a_row_is_added_to_every_row() -> None:
    a, b = random_bytes(np.uint8, 6, 13), random_bytes(np.uint8, 13)
    args = ((0.5, 0.25, 0.3), (3, 4, 5), (-np.inf, np.inf))
    out = cpu_integers.add(a, b, *args, np.empty_like(a))
    whole = np.ascontiguousarray(np.broadcast_to(b, a.shape))
    np.testing.assert_array_equal(out, cpu_integers.add(a, whole, *args, np.empty_like(a)))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float32])
@pytest.mark.parametrize("channels", [1, 7])
def test_tables(channels: int, kind) -> None:
    x = random_bytes(np.int8, 50, 7)
    table = RNG.integers(-100, 100, (channels, 256)).astype(kind)
    out = cpu_integers.look_up(table, x, np.empty(x.shape, kind))
    expected = table[np.arange(7) % channels, x.view(np.uint8)]
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="256 entries"):
        cpu_integers.look_up(table.reshape(-1)[:-1].copy(), x, np.empty(x.shape, kind))


def test_what_does_not_fit_is_refused() -> None:
    product = ByteProduct(np.zeros((4, 3), np.int8))
    finish = Finish(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"required \[\.\.\., 4\]"):
        product(np.zeros((2, 5), np.uint8), 0, finish, np.empty((2, 3), np.float32))
    with pytest.raises(ValueError, match="required float32, int32, uint8"):
        product(np.zeros((2, 4), np.uint8), 0, finish, np.empty((2, 3), np.int64))
    with pytest.raises(ValueError, match="required int8"):
        ByteConvolution(np.zeros((1, 1, 1, 1), np.uint8), Geometry())  # type: ignore[arg-type]
