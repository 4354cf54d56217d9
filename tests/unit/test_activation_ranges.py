"""Ranges of activations, held to plain rules over the values themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.quant.calibration.histogram import SIDE, Histogram
from halfbyte.quant.calibration.ranges import (
    METHODS,
    Observed,
    Rule,
    chosen_range,
    divergence,
    magnitude_bins,
    percentile,
    squared_errors,
)

RNG = np.random.default_rng(7)
KINDS = {
    "normal": lambda n: RNG.standard_normal(n),
    "relu": lambda n: np.maximum(RNG.standard_normal(n), 0),
    "tails": lambda n: RNG.standard_t(3, n),
    "shifted": lambda n: RNG.standard_normal(n) * 0.1 + 3,
    "tiny": lambda n: RNG.standard_normal(n) * 1e-20,
}


def values(kind: str, count: int = 20_000) -> np.ndarray:
    return np.asarray(KINDS[kind](count), np.float32)


def observed(*parts: np.ndarray) -> Observed:
    result = Observed()
    for part in parts:
        result.add(part)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_histogram_is_that_of_all_values_at_once(kind: str) -> None:
    whole = values(kind)
    pieces, backwards = Histogram(), Histogram()
    for part in np.array_split(whole, 13):
        pieces.add(part)
    for part in np.array_split(np.sort(whole)[::-1], 3):
        backwards.add(part.reshape(1, -1))
    edges = np.arange(-SIDE, SIDE + 1) * pieces.width
    expected, _ = np.histogram(whole.astype(np.float64), edges)
    assert np.array_equal(pieces.counts, expected)
    assert np.array_equal(pieces.counts, backwards.counts)
    assert (pieces.low, pieces.high) == (float(whole.min()), float(whole.max()))
    assert pieces.total == len(whole)
    assert 2.0 ** (pieces.exponent or 0) <= 2 * np.abs(whole).max() < 4 * 2.0**pieces.exponent


def test_growth_joins_pairs_of_bins() -> None:
    small, large = values("normal") * np.float32(0.01), values("tails") * np.float32(50)
    grown, direct = Histogram(), Histogram()
    for part in (small, large):
        grown.add(part)
    direct.add(np.concatenate([large, small]))
    assert np.array_equal(grown.counts, direct.counts)
    first, second = Histogram(), Histogram()
    first.add(small)
    second.add(large)
    for merged in (first.merged(second), second.merged(first)):
        assert np.array_equal(merged.counts, direct.counts)
        assert merged.exponent == direct.exponent


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    whole = values("normal", 100)
    whole[7] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        Histogram().add(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_and_percentile(kind: str) -> None:
    whole = values(kind)
    seen = observed(whole)
    low, high = chosen_range([seen], Rule("minmax"))
    assert (low, high) == (min(0.0, float(whole.min())), max(0.0, float(whole.max())))
    low, high = percentile(seen, Rule("percentile", percentile=99.0))
    width = seen.histogram.width
    below, above = (whole < low - width).mean(), (whole > high + width).mean()
    assert below <= 0.005
    assert above <= 0.005
    assert low == whole.min() or (whole < low + width).mean() >= 0.005
    assert high == whole.max() or (whole > high - width).mean() >= 0.005


def test_the_average_moves_by_a_hundredth_each_sample() -> None:
    samples = [values("normal", 50) for _ in range(20)]
    low, high = float(samples[0].min()), float(samples[0].max())
    for sample in samples[1:]:
        low = low * 0.99 + float(sample.min()) * 0.01
        high = high * 0.99 + float(sample.max()) * 0.01
    assert chosen_range([observed(*samples)], Rule("average")) == pytest.approx((low, high))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_beats_every_range_of_a_fine_search(kind: str, symmetric: bool) -> None:
    whole = values(kind)
    seen = observed(whole)
    levels = 254 if symmetric else 255
    low, high = chosen_range([seen], Rule("mse", levels=levels, symmetric=symmetric))

    def error(a: float, b: float) -> float:
        step = (b - a) / levels
        if not step:
            return float("inf")
        zero = np.rint(-a / step)
        codes = np.clip(np.rint(whole.astype(np.float64) / step), -zero, levels - zero)
        return float(((codes * step - whole) ** 2).sum())

    least, most = min(0.0, float(whole.min())), max(0.0, float(whole.max()))
    if symmetric:
        most = max(most, -least)
        least = -most
    tried = [
        error(least * a, most * (a if symmetric else b))
        for a in np.linspace(0.2, 1, 40)
        for b in (np.linspace(0.2, 1, 40) if not symmetric else [0.0])
    ]
    assert error(low, high) <= min(tried) * 1.02
    if symmetric:
        assert low == -high


def test_squared_errors_are_those_of_rounding() -> None:
    centers, counts = RNG.standard_normal(50), RNG.integers(1, 9, 50).astype(np.float64)
    low, high = -1.1, 2.3
    step = (high - low) / 255
    zero = round(-low / step)
    grid = (np.arange(256) - zero) * step
    nearest = np.abs(centers[:, None] - grid).min(1)
    found = squared_errors(centers, counts, np.asarray([low]), np.asarray([high]), 255)
    assert found == pytest.approx([float((nearest**2 * counts).sum())])


def naive_divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    p = counts[:stop].astype(float).copy()
    p[-1] += counts[stop:].sum()
    q = np.zeros(stop)
    bounds = [level * stop // levels for level in range(levels)] + [stop]
    for start, end in itertools.pairwise(bounds):
        filled = [i for i in range(start, end) if counts[i] > 0]
        for i in filled:
            q[i] = sum(counts[start:end]) / len(filled)
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_takes_the_least_divergence() -> None:
    seen = observed(values("tails", 60_000))
    counts, width = magnitude_bins(seen.histogram)
    assert 1024 < len(counts) <= 2048
    for stop in (128, 200, 777, len(counts)):
        expected = naive_divergence(counts, stop, 128)
        assert divergence(counts, stop, 128) == pytest.approx(expected, rel=1e-9)
    low, high = chosen_range([seen], Rule("entropy"))
    best = min(naive_divergence(counts, stop, 128) for stop in range(128, len(counts) + 1, 16))
    stop = round(max(-low, high) / width)
    assert divergence(counts, stop, 128) <= best + 1e-12
    assert high < seen.histogram.high


def test_zeros_of_a_relu_do_not_shrink_the_entropy_range() -> None:
    low, high = chosen_range([observed(values("relu", 50_000))], Rule("entropy"))
    assert low == 0.0
    assert high > 2.0


@pytest.mark.parametrize("method", METHODS)
def test_shared_and_degenerate_ranges(method: str) -> None:
    positive, negative = observed(values("relu")), observed(-values("relu"))
    low, high = chosen_range([positive, negative], Rule(method))
    assert low < 0 < high
    zeros = observed(np.zeros(5, np.float32))
    assert chosen_range([zeros], Rule(method)) == (0.0, 0.0)
    assert chosen_range([observed(np.empty(0, np.float32))], Rule(method)) == (0.0, 0.0)
    one = chosen_range([observed(np.full(9, 2.5, np.float32))], Rule(method))
    assert one[0] == 0.0
    assert one[1] == pytest.approx(2.5, rel=0.02)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="minmax, average, percentile, entropy, mse"):
        chosen_range([observed(values("normal"))], Rule("best"))


def test_columns_count_as_often_as_they_are_told() -> None:
    parts = [values("tails", 60).reshape(-1, 4), values("normal", 12).reshape(-1, 4) * 30]
    often = np.array([3, 1, 0, 1 << 20], np.int64)
    counted, repeated = Histogram(), Histogram()
    for part in parts:
        counted.add(part, often)
        repeated.add(part[:, :0], None)
    for part in reversed(parts):
        repeated.add(part)
    edges = counted.edges
    assert (counted.low, counted.high) == (repeated.low, repeated.high)
    whole = np.concatenate(parts).astype(np.float64)
    expected, _ = np.histogram(whole, edges, weights=np.broadcast_to(often, whole.shape))
    assert np.array_equal(counted.counts, expected.astype(np.int64))
