"""Convolutions and pools against plain numpy sums, in every form, on odd sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from halfbyte.kernels import cpu, cpu_nets
from halfbyte.kernels.cpu_nets import Activation, Convolution, ConvWeight, Counts, Window
from support.kernel_cases import needs_extension

pytestmark = needs_extension


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def out_size(shape, window: Window, ends) -> tuple[int, int]:
    return tuple(
        (n + b + e - (k - 1) * d - 1) // s + 1
        for n, b, e, k, d, s in zip(
            shape[2:], window.pads, ends, window.kernel, window.dilations, window.strides,
            strict=True,
        )
    )  # fmt: skip


def windows_of(x, window: Window, size, fill: float = 0.0):
    """Return [n, c, kh, kw, oh, ow] in float64."""
    (sh, sw), (dh, dw), (kh, kw) = window.strides, window.dilations, window.kernel
    (top, left), (oh, ow) = window.pads, size
    height, width = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1
    room = max(height, top + x.shape[2]), max(width, left + x.shape[3])
    padded = np.full((*x.shape[:2], *room), fill)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    result = np.empty((*x.shape[:2], kh, kw, oh, ow))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            result[:, :, i, j] = padded[:, :, rows, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
    return result


def expected(x, w, bias, window: Window, size, groups: int):
    cells = windows_of(x, window, size)
    n, c = x.shape[:2]
    cells = cells.reshape(n, groups, c // groups, *cells.shape[2:])
    rows = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).astype(np.float64)
    result = np.einsum("ngcijhw,gmcij->ngmhw", cells, rows)
    return result.reshape(n, w.shape[0], *size) + bias.reshape(1, -1, 1, 1)


PLAIN = Window((3, 3), pads=(1, 1))
# name: form, x shape, output channels, groups, window, padding at the end
CASES = {
    "image": ("gemm", (1, 3, 63, 64), 32, 1, Window((7, 7), (2, 2), (1, 1), (3, 3)), (3, 3)),
    "every pixel": ("gemm", (2, 300, 9, 11), 50, 1, Window((1, 1)), (0, 0)),
    "strided point": ("gemm", (2, 40, 9, 11), 7, 1, Window((1, 1), (2, 2)), (0, 0)),
    "groups": ("gemm", (2, 12, 33, 17), 30, 3, Window((3, 5), (2, 3), (1, 2), (1, 2)), (0, 3)),
    "line": ("gemm", (2, 5, 1, 301), 9, 1, Window((1, 16), (1, 8), (1, 1), (0, 4)), (0, 2)),
    "long kernel": ("gemm", (1, 1, 1, 800), 20, 1, Window((1, 300), (1, 5)), (0, 0)),
    "few channels": ("gemm", (2, 40, 21, 37), 3, 1, PLAIN, (1, 1)),
    "few channels of groups": ("gemm", (1, 8, 30, 31), 8, 4, Window((3, 3), (2, 2)), (0, 0)),
    "few pixels": ("rows", (2, 70, 3, 3), 40, 1, PLAIN, (1, 1)),
    "few pixels of groups": ("rows", (2, 36, 6, 5), 40, 2, Window((3, 3), (2, 1)), (0, 0)),
    "one pixel": ("rows", (3, 300, 1, 1), 130, 1, Window((1, 1)), (0, 0)),
    "depthwise": ("depthwise", (2, 21, 15, 13), 21, 21, PLAIN, (1, 1)),
    "depthwise stride": (
        *("depthwise", (2, 16, 15, 14), 16, 16, Window((3, 3), (2, 2), (1, 1), (1, 1)), (1, 1)),
    ),
    "depthwise wide": ("depthwise", (2, 5, 50, 61), 5, 5, PLAIN, (1, 1)),
    "depthwise wide stride": (
        *("depthwise", (2, 6, 101, 99), 6, 6, Window((3, 3), (2, 2), (1, 1), (1, 1)), (1, 0)),
    ),
    "depthwise wide even stride": (
        *("depthwise", (1, 3, 130, 132), 3, 3, Window((3, 3), (2, 2), (1, 1), (0, 2)), (1, 0)),
    ),
    "pairs": ("gemm", (1, 3, 46, 45), 32, 1, Window((3, 3), (2, 2), (1, 1), (1, 2)), (1, 2)),
    "pairs that end early": ("gemm", (1, 2, 40, 40), 16, 1, Window((3, 2), (2, 2)), (0, 0)),
    "depthwise large": ("depthwise", (1, 8, 90, 120), 8, 8, Window((5, 3), pads=(2, 0)), (2, 2)),
    "depthwise dilated": (
        *("depthwise", (1, 9, 20, 20), 9, 9, Window((3, 3), (1, 1), (2, 3), (2, 0)), (2, 3)),
    ),
    "several of each": ("depthwise", (2, 6, 15, 13), 18, 6, Window((5, 5), (2, 2)), (0, 0)),
    "winograd": ("winograd", (2, 20, 17, 19), 24, 1, PLAIN, (1, 1)),
    "winograd uneven": ("winograd", (2, 9, 14, 23), 7, 1, Window((3, 3), pads=(0, 2)), (1, 0)),
    "winograd deep": ("winograd", (1, 300, 6, 5), 20, 1, PLAIN, (1, 1)),
}


def convolution(name: str, activation: Activation = cpu_nets.NO_ACTIVATION):
    form, shape, out, groups, window, ends = CASES[name]
    size = out_size(shape, window, ends)
    x, inner = normal(*shape), shape[1] // groups
    scale = np.float32(1 / np.sqrt(inner * window.kernel[0] * window.kernel[1]))
    w, bias = normal(out, inner, *window.kernel, seed=4) * scale, normal(out, seed=5)
    run = Convolution(ConvWeight(w, groups, form), shape, size, window, bias, activation)
    return run, x, expected(x, w, bias, window, size, groups)


@pytest.mark.parametrize("name", CASES)
def test_convolution(name: str) -> None:
    run, x, wanted = convolution(name)
    bound = 4e-5 if CASES[name][0] == "winograd" else 5e-6
    np.testing.assert_allclose(run(x), wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("name", CASES)
def test_result_depends_neither_on_threads_nor_on_the_batch(name: str) -> None:
    run, x, _ = convolution(name)
    before = cpu.threads()
    try:
        cpu.set_threads(1)
        one = run(x)
        cpu.set_threads(3)
        np.testing.assert_array_equal(one, run(x))
    finally:
        cpu.set_threads(before)
    if x.shape[0] > 1:
        form, shape, out, groups, window, ends = CASES[name]
        inner = shape[1] // groups
        scale = np.float32(1 / np.sqrt(inner * window.kernel[0] * window.kernel[1]))
        w = normal(out, inner, *window.kernel, seed=4) * scale
        alone = Convolution(
            ConvWeight(w, groups, form),
            (1, *shape[1:]),
            out_size(shape, window, ends),
            window,
            normal(out, seed=5),
        )
        np.testing.assert_array_equal(alone(x[1:2]), one[1:2])


ACTIVATIONS = {
    "relu": (Activation("relu"), lambda v: np.maximum(v, 0)),
    "clip": (Activation("clip", -0.2, 0.7), lambda v: np.clip(v, -0.2, 0.7)),
    "swish": (Activation("swish", 1.0), lambda v: v / (1 + np.exp(-v))),
    "softplus": (Activation("softplus"), lambda v: np.logaddexp(0, v)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["image", "groups", "few pixels", "depthwise", "winograd uneven"])
def test_what_follows_a_convolution(name: str, activation: str) -> None:
    kernel, function = ACTIVATIONS[activation]
    run, x, wanted = convolution(name, kernel)
    residual = normal(*wanted.shape, seed=9)
    np.testing.assert_allclose(run(x), function(wanted), rtol=0, atol=4e-5)
    np.testing.assert_allclose(run(x, residual), function(wanted + residual), rtol=0, atol=4e-5)


def test_nan_stays_in_its_window() -> None:
    for activation in ("none", "relu"):
        run, x, _ = convolution("depthwise", Activation(activation))
        x[0, 0, 7, 7] = np.nan
        found = np.isnan(run(x))
        assert found[0, 0, 6:9, 6:9].all()
        assert found.sum() == 9


TRANSPOSED = {
    "overlapping": ((2, 16, 7, 9), 12, 1, Window((4, 4), (2, 2), (1, 1), (1, 1)), (14, 18)),
    "side by side": ((1, 5, 6, 5), 3, 1, Window((2, 2), (2, 2)), (12, 10)),
    "groups": ((1, 6, 5, 5), 8, 2, Window((3, 3), (1, 2), (1, 1), (1, 0)), (5, 11)),
    "line": ((1, 300, 1, 200), 16, 1, Window((1, 16), (1, 8), (1, 1), (0, 4)), (1, 1600)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution(name: str) -> None:
    shape, out, groups, window, size = TRANSPOSED[name]
    x, w = normal(*shape), normal(shape[1], out // groups, *window.kernel, seed=4)
    bias = normal(out, seed=5)
    run = Convolution(ConvWeight(w, groups, "transposed"), shape, size, window, bias)
    full = np.zeros((shape[0], out, size[0] + 40, size[1] + 40))
    inner, outer = shape[1] // groups, out // groups
    for group in range(groups):
        rows = slice(group * inner, (group + 1) * inner)
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                part = np.einsum("nchw,cm->nmhw", x[:, rows].astype(float), w[rows, :, i, j])
                y, left = 20 + i - window.pads[0], 20 + j - window.pads[1]
                place = full[:, group * outer : (group + 1) * outer]
                place[
                    :,
                    :,
                    y : y + shape[2] * window.strides[0] : window.strides[0],
                    left : left + shape[3] * window.strides[1] : window.strides[1],
                ] += part
    wanted = full[:, :, 20 : 20 + size[0], 20 : 20 + size[1]] + bias.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(run(x), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


POOLS = {
    "halved": ((2, 3, 17, 19), Window((2, 2), (2, 2)), (0, 0)),
    "overlapping": ((2, 11, 17, 19), Window((3, 3), (2, 2), (1, 1), (1, 1)), (1, 1)),
    "ceiling": ((1, 8, 8, 9), Window((3, 2), (2, 3), (1, 1), (0, 1)), (1, 2)),
    "dilated": ((1, 9, 20, 7), Window((3, 2), (1, 1), (2, 3)), (0, 0)),
    "large": ((1, 9, 100, 130), Window((3, 3), (2, 2), (1, 1), (1, 1)), (1, 1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    shape, window, ends = POOLS[name]
    x, size = normal(*shape), out_size(shape, window, ends)
    cells = windows_of(x, window, size, -np.inf)
    np.testing.assert_array_equal(cpu_nets.pool(x, window, size), cells.max(axis=(2, 3)))
    inside = np.isfinite(windows_of(np.zeros_like(x), window, size, -np.inf)[0, 0])
    rows = inside.any(axis=1).sum(axis=0).max(axis=1).astype(np.float32)
    columns = inside.any(axis=0).sum(axis=0).max(axis=0).astype(np.float32)
    counts = Counts(rows, columns)
    total = np.where(np.isfinite(cells), cells, 0).sum(axis=(2, 3))
    wanted = total / inside.sum(axis=(0, 1))
    np.testing.assert_allclose(cpu_nets.pool(x, window, size, counts), wanted, rtol=0, atol=1e-6)


def test_maximum_keeps_nan() -> None:
    x = normal(1, 2, 6, 6)
    x[0, 1, 2, 3] = np.nan
    found = np.isnan(cpu_nets.pool(x, Window((2, 2), (2, 2)), (3, 3)))
    assert found[0, 1, 1, 1]
    assert found.sum() == 1


def test_the_form_follows_from_the_sizes() -> None:
    wide = (64, 64, 3, 3)
    assert cpu_nets.conv_form(wide, 1, PLAIN, (56, 56)) == "winograd"
    assert cpu_nets.conv_form((512, 512, 3, 3), 1, PLAIN, (7, 7)) != "winograd"
    assert cpu_nets.conv_form((8, 3, 3, 3), 1, PLAIN, (56, 56)) == "gemm"
    assert cpu_nets.conv_form((64, 1, 3, 3), 64, PLAIN, (56, 56)) == "depthwise"
    assert cpu_nets.conv_form((64, 64, 1, 1), 1, Window((1, 1)), (1, 1)) == "rows"


def test_wrong_sizes_are_refused() -> None:
    weight = ConvWeight(normal(4, 3, 3, 3))
    with pytest.raises(ValueError, match="weight and geometry disagree"):
        Convolution(weight, (1, 5, 8, 8), (6, 6), Window((3, 3)))
    run = Convolution(weight, (1, 3, 8, 8), (6, 6), Window((3, 3)))
    with pytest.raises(ValueError, match="x has shape"):
        run(normal(1, 3, 8, 7))
    with pytest.raises(ValueError, match="required a C-contiguous float32"):
        run(np.zeros((1, 3, 8, 8)))


def test_an_empty_batch_gives_an_empty_result() -> None:
    run = Convolution(ConvWeight(normal(4, 3, 3, 3)), (0, 3, 8, 8), (6, 6), Window((3, 3)))
    assert run(np.empty((0, 3, 8, 8), np.float32)).shape == (0, 4, 6, 6)


@pytest.mark.skipif(cpu.available() and cpu.isa() == "scalar", reason="already the plain code")
def test_the_plain_instruction_set_agrees() -> None:
    environment = {**os.environ, "HALFBYTE_ISA": "scalar"}
    # Chosen for their code paths; the plain code is slow.
    chosen = "image or groups or pixel or depthwise or uneven or overlapping or ceiling"
    selected = f"({chosen}) and not plain_instruction and not large"
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__)), "-k", selected]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:]
