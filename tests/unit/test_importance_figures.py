"""Figures of importance matrices against plain loops over their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.converters.gguf.importance import ImportanceEntry, ImportanceMatrix
from halfbyte.importance import describe_importance
from halfbyte.verification.importance import weight_figures


def test_figures_by_hand() -> None:
    found = weight_figures("blk.3.ffn_up.weight", np.float32([[4, 0, 8, 4]]), np.array([4]))
    assert (found.layer, found.matrices, found.columns, found.tokens) == (3, 1, 4, 4)
    # means 1, 0, 2, 1; shares 1/4, 1/2, 1/4
    assert (found.total, found.least, found.most, found.mean) == (4, 0, 2, 1)
    assert found.deviation == pytest.approx(math.sqrt(0.5))
    assert (found.active, found.zeros) == (0.75, 0.25)
    assert found.entropy == pytest.approx(1.5)
    assert found.evenness == pytest.approx(0.75)
    assert found.z_density == 0.25
    assert found.cosine is None
    assert found.top == ((2, 2), (0, 1), (3, 1), (1, 0))


def test_figures_of_random_sums() -> None:
    rng = np.random.default_rng(4)
    sums = (rng.random((3, 50)) ** 4 * 100).astype(np.float32)
    counts = np.array([7, 0, 3])
    found = weight_figures("blk.0.x_exps.weight", sums, counts, sums[::-1])
    values = [float(s) / int(c) for row, c in zip(sums, counts, strict=True) if c for s in row]
    mean = sum(values) / 100
    deviation = math.sqrt(sum(v * v for v in values) / 100 - mean * mean)
    total = sum(values)
    assert (found.unseen_matrices, found.tokens) == (1, 7)
    assert found.total == pytest.approx(total)
    assert found.deviation == pytest.approx(deviation)
    assert found.active == sum(v > 1e-5 for v in values) / 100
    assert found.z_density == sum((v - mean) / deviation > 1 for v in values) / 100
    entropy = -sum(v / total * math.log2(v / total) for v in values if v > 0)
    assert found.entropy == pytest.approx(entropy)
    flat, other = sums.astype(float).ravel(), sums[::-1].astype(float).ravel()
    cosine = sum(flat * other) / math.sqrt(sum(flat**2) * sum(other**2))
    assert found.cosine == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("sums", "counts"), [([[0, 0]], [0]), ([[0, 0]], [5]), ([[3]], [1]), ([[2, 2]], [1])]
)
def test_nothing_divides_by_zero(sums: list[list[float]], counts: list[int]) -> None:
    with np.errstate(all="raise"):
        found = weight_figures("w", np.float32(sums), np.array(counts), np.zeros((1, 2)))
    assert found.layer is None and found.cosine is None
    assert all(math.isfinite(v) for v in vars(found).values() if isinstance(v, float))
    assert found.z_density == 0


def test_layers_compare_with_the_one_before() -> None:
    def entry(*sums: float) -> ImportanceEntry:
        return ImportanceEntry(np.float32([sums]), np.array([2]))

    matrix = ImportanceMatrix(
        {
            "blk.10.a.weight": entry(2, 0),
            "blk.9.a.weight": entry(1, 1),
            "blk.9.b.weight": entry(3, 3, 3, 3),
            "output.weight": entry(1),
        },
        ("set",),
        1,
        2,
        "file",
    )
    report = describe_importance(matrix)
    assert [f.name for f in report.weights] == [
        *("blk.9.a.weight", "blk.9.b.weight", "blk.10.a.weight", "output.weight")
    ]
    assert [f.cosine for f in report.weights] == [None, None, pytest.approx(0.5**0.5), None]
    first, second = report.layers
    assert (first.layer, first.cosine) == (9, None)
    assert first.total == pytest.approx((2 * 1 + 4 * 6) / 6)
    assert (second.layer, second.cosine) == (10, pytest.approx(0.5**0.5))
    assert report.to_json()["weights"][0]["top"] == ((0, 0.5), (1, 0.5))
