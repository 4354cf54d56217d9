"""The exhaustive search: never worse than llama.cpp's, the optimum where that can be listed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.exhaustive import EXHAUSTIVE, encode_exhaustive, search_weight
from halfbyte.kernels import cpu, cpu_search
from halfbyte.kernels.codebooks import IQ4_VALUES
from support.weight_rows import stress_rows

COLUMNS = 512


def weights(seed: int = 0, rows: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_t(4, (rows, COLUMNS)) * 0.02).astype(np.float32)


def importance() -> np.ndarray:
    values = np.random.default_rng(5).random(COLUMNS).astype(np.float32) ** 2
    values[::7] = 0
    return values


def block_errors(name: str, data: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    encoding = encoding_from_name(name)
    gap = encoding.decode({"data": data}, rows.shape[1]).astype(np.float64) - rows
    return (weight * gap**2).reshape(-1, encoding.block_shape[1]).sum(axis=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(EXHAUSTIVE))
def test_less_error_than_the_usual_search(name: str, weighted: bool) -> None:
    encoding, rows = encoding_from_name(name), weights()
    given = importance() if weighted else None
    weight = search_weight(rows, given)
    usual = block_errors(name, encoding.encode(rows, given)["data"], rows, weight)
    found = block_errors(name, encode_exhaustive(encoding, rows, given)["data"], rows, weight)
    assert (found <= usual * (1 + 1e-6)).all()
    assert found.sum() < usual.sum()


@pytest.mark.parametrize("name", list(EXHAUSTIVE))
def test_odd_rows(name: str) -> None:
    encoding = encoding_from_name(name)
    for case, rows in stress_rows(COLUMNS, rows=3):
        try:
            usual = encoding.encode(rows)["data"]
        except QuantizationError:
            with pytest.raises(QuantizationError):
                encode_exhaustive(encoding, rows)
            continue
        data = encode_exhaustive(encoding, rows)["data"]
        weight = search_weight(rows, None)
        errors = [block_errors(name, each, rows, weight) for each in (data, usual)]
        assert np.isfinite(errors[0]).all(), case
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all(), case


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "IQ4_NL"])
def test_the_optimum_over_all_float16_scales(name: str) -> None:
    encoding, rows = encoding_from_name(name), weights(seed=3, rows=1)[:, :64]
    weight = search_weight(rows, None)
    found = block_errors(name, encode_exhaustive(encoding, rows)["data"], rows, weight)
    half = {"Q4_0": 8, "Q5_0": 16}.get(name, 0)
    levels = np.arange(-half, half) if half else np.array(IQ4_VALUES)
    levels = levels.astype(np.float64)
    halves = np.arange(1, 0x7C00, 3, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves = halves[(halves > 1e-4) & (halves < 1)]
    for x, w, error in zip(rows.reshape(-1, 32), weight.reshape(-1, 32), found, strict=True):
        for scale in np.concatenate([halves, -halves]):
            steps = x.astype(np.float64) / scale
            nearest = levels[np.abs(steps[:, None] - levels).argmin(axis=1)]
            assert (w * (nearest * scale - x) ** 2).sum() >= error * (1 - 1e-5)


def groups(count: int = 37, candidates: int = 21) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((count, 16), np.float32)
    w = generator.random((count, 16), np.float32)
    scale = (generator.random((count, candidates), np.float32) - 0.3) * 0.5
    scale[3] = 0
    minimum = -generator.random((count, candidates), np.float32)
    return x, w, scale, minimum


@pytest.mark.parametrize("levels", [tuple(range(16)), (-8, -1, 0, 3, 9), (-127, -49, 1, 113)])
def test_kernel_equals_its_reference(levels: tuple[int, ...]) -> None:
    x, w, scale, minimum = groups()
    for lift in (None, minimum):
        expected = cpu_search.least_error_reference(x, w, levels, scale, lift)
        found = cpu_search.least_error(x, w, levels, scale, lift)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1].view(np.uint32), expected[1].view(np.uint32))


def test_kernel_over_consecutive_halves() -> None:
    x, w, _, _ = groups()
    first = np.full(len(x), np.float16(0.1).view(np.uint16))
    for both in (False, True):
        scale = cpu_search.half_candidates(first, 50, both)
        expected = cpu_search.least_error_reference(x, w, tuple(range(-8, 8)), scale, None)
        found = cpu_search.least_error(
            x, w, tuple(range(-8, 8)), first_half=first, halves=50, both_signs=both
        )
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_kernel_refuses_shapes_that_do_not_fit() -> None:
    if not cpu.available():
        pytest.skip("the extension is not installed")
    x, w, scale, _ = groups()
    with pytest.raises(ValueError, match="least_error"):
        cpu_search.least_error(x, w[:-1], (0, 1), scale)
    with pytest.raises(ValueError, match="least_error"):
        cpu_search.least_error(x, w, (0,), scale)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "Q3_K", "IQ4_XS", "NVFP4"])
def test_numpy_alone_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, rows = encoding_from_name(name), weights(seed=9, rows=1)
    compiled = encode_exhaustive(encoding, rows)["data"]
    monkeypatch.setattr(cpu, "available", lambda: False)
    np.testing.assert_array_equal(encode_exhaustive(encoding, rows)["data"], compiled)


def test_other_encodings_are_encoded_as_always() -> None:
    rows = weights()
    for name in ("IQ3_S", "TQ2_0", "float16"):
        encoding = encoding_from_name(name)
        np.testing.assert_array_equal(
            encode_exhaustive(encoding, rows)["data"], encoding.encode(rows)["data"]
        )


def test_the_largest_values_are_searched_without_numpy_warnings() -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1, 5] = 1e38
    encoding = encoding_from_name("MXFP4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encode_exhaustive(encoding, rows)["data"]
        with pytest.raises(QuantizationError):
            encode_exhaustive(encoding_from_name("Q4_0"), rows)
    np.testing.assert_array_equal(data, encoding.encode(rows)["data"])
