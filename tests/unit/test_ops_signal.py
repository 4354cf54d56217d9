"""Transforms against the sums that define them, and the mel filter bank."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluate_graph, evaluated_one, inferred, node_graph, upgrade_fully


def summed(signal: np.ndarray, length: int, inverse: bool = False) -> np.ndarray:
    """Return the transform of complex signals [..., n] by its matrix."""
    padded = np.zeros((*signal.shape[:-1], length), np.complex128)
    count = min(length, signal.shape[-1])
    padded[..., :count] = signal[..., :count]
    turns = np.outer(np.arange(length), np.arange(length)) / length
    result = padded @ np.exp((2j if inverse else -2j) * np.pi * turns)
    return result / length if inverse else result


def pairs(values: np.ndarray) -> np.ndarray:
    return np.stack([values.real, values.imag], axis=-1)


@pytest.mark.parametrize("length", [None, 4, 9])
@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dft_is_the_sum(length: int | None, inverse: int, dtype: type) -> None:
    data = normal(1, 2, 6, 3, 2).astype(dtype)
    given = [None if length is None else np.asarray(length), np.asarray(1)]
    result = evaluated_one("DFT", data, *given, inverse=inverse)
    values = (data[..., 0] + 1j * data[..., 1]).swapaxes(1, 2)
    wanted = pairs(summed(values, length or 6, bool(inverse)).swapaxes(1, 2))
    bound = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("length", [7, 8])
def test_onesided_transform_and_its_inverse(length: int) -> None:
    data = normal(2, 3, length, 1)
    half = evaluated_one("DFT", data, onesided=1)
    assert half.shape == (3, length // 2 + 1, 2)
    whole = evaluated_one("DFT", data)
    np.testing.assert_allclose(half, whole[:, : length // 2 + 1], rtol=1e-5, atol=1e-6)
    back = evaluated_one("DFT", half, np.asarray(length), onesided=1, inverse=1)
    np.testing.assert_allclose(back, data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attributes", [{}, {"axis": 2}, {"axis": -3, "onesided": 1}])
def test_axis_of_the_older_form(attributes: dict) -> None:
    data = normal(3, 2, 3, 4, 1)
    graph, node = node_graph("DFT", 17, [data], attributes)
    (before,) = evaluate_graph(graph, [data])
    wanted = np.asarray(attributes.get("axis", 1))
    rest = {n: v for n, v in attributes.items() if n != "axis"}
    np.testing.assert_array_equal(before, evaluated_one("DFT", data, None, wanted, **rest))
    assert upgrade_fully(graph)
    assert node.since_version == 20
    np.testing.assert_array_equal(evaluate_graph(graph, [data])[0], before)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft_transforms_windowed_frames(onesided: int) -> None:
    signal = normal(4, 2, 23, 1)
    window = np.hanning(6).astype(np.float32)
    result = evaluated_one("STFT", signal, np.asarray(4), window, onesided=onesided)
    assert result.shape == (2, 5, 4 if onesided else 6, 2)
    for frame in range(5):
        cut = signal[:, frame * 4 : frame * 4 + 6, 0] * window
        wanted = pairs(summed(cut, 6))[:, : result.shape[2]]
        np.testing.assert_allclose(result[:, frame], wanted, rtol=1e-4, atol=1e-5)


def test_stft_without_window_and_of_two_axes() -> None:
    signal = normal(5, 2, 16)
    given = [np.asarray(5), None, np.asarray(8)]
    result = evaluated_one("STFT", signal, *given)
    boxed = evaluated_one("STFT", signal[..., None], np.asarray(5), np.ones(8, np.float32))
    np.testing.assert_array_equal(result, boxed)
    assert evaluated_one("STFT", signal, np.asarray(1)).shape == (2, 1, 9, 2)


def test_mel_filters_are_triangles() -> None:
    numbers = [np.asarray(n) for n in (6, 64, 8000)]
    edges = [np.float32(100), np.float32(3500)]
    matrix = evaluated_one("MelWeightMatrix", *numbers, *edges)
    assert matrix.shape == (33, 6)
    np.testing.assert_array_equal(matrix.max(axis=0), 1)
    for column in matrix.T:
        peak = int(column.argmax())
        assert (np.diff(column[: peak + 1]) >= 0).all()
        assert (np.diff(column[peak:]) <= 0).all()
    double = evaluated_one("MelWeightMatrix", *numbers, *edges, output_datatype="float64")
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, matrix, rtol=1e-6)


def test_shapes_with_symbols() -> None:
    x = Value("x", "float32", ("n", "t", 1))
    assert inferred("DFT", x)[0].shape == ("n", "t", 2)
    assert inferred("DFT", x, np.asarray(8), onesided=1)[0].shape == ("n", 5, 2)
    assert inferred("DFT", x, onesided=1)[0].shape == ("n", UNKNOWN, 2)
    assert inferred("DFT", x, None, Value("a", "int64", ()))[0].shape == (UNKNOWN, UNKNOWN, 2)
    assert inferred("DFT", Value("x", "float32"))[0].shape is None
    window = Value("w", "float32", (10,))
    step = np.asarray(2)
    assert inferred("STFT", x, step, window)[0].shape == ("n", UNKNOWN, 6, 2)
    assert inferred("STFT", Value("x", "float32"), step)[0].shape is None


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "rule"),
    [
        ("DFT", (1, 4, 3), {}, "3 values, 1 or 2 were required"),
        ("DFT", (1, 4, 2), {"onesided": 1}, "takes real values"),
        ("STFT", (1, 4, 2), {}, "takes real values"),
    ],
)
def test_broken_rules(op: str, shape: tuple, attributes: dict, rule: str) -> None:
    more = [np.asarray(1)] if op == "STFT" else []
    with pytest.raises(GraphError, match=rule):
        inferred(op, Value("x", "float32", shape), *more, **attributes)


def test_axis_of_the_pairs_is_refused() -> None:
    with pytest.raises(GraphError, match="axis 2 holds the complex numbers"):
        inferred("DFT", Value("x", "float32", (1, 4, 2)), None, np.asarray(2))
