"""Stored scales of what linear layers read, held to the formula over all values at once."""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.calibration.batches import Batches
from halfbyte.quant.calibration.input_ranges import (
    RangeOptions,
    column_counts,
    input_ranges,
    scale_of,
    symmetric_rule,
)
from halfbyte.quant.calibration.ranges import Observed, chosen_range

COLUMNS, INNER = 24, 40
READ = ("first", "twin", "last")
REACH = {"int": 127, "float": 448}
RNG = np.random.default_rng(4)
WEIGHTS = {
    "first": RNG.standard_normal((INNER, COLUMNS)),
    "twin": RNG.standard_normal((INNER, COLUMNS)),
    "last": RNG.standard_normal((8, INNER)),
    "unread": RNG.standard_normal((8, INNER)),
}


def two_layers(more: tuple[str, ...] = ()) -> Model:
    """Return last(relu(first(x)) * twin(x)); more: what reads the inner value besides."""
    graph = Graph()
    held = {n: tensor_from_array(n, w.astype(np.float32)) for n, w in WEIGHTS.items()}
    constants = {n: graph.add_constant(t) for n, t in held.items() if n != "unread"}

    def linear(x, name):
        return graph.add("Linear", [x, constants[name]], domain=HALFBYTE_DOMAIN)

    x = graph.add_input("x", "float32", ("rows", COLUMNS))
    first = linear(x, "first")
    inner = graph.add("Mul", [graph.add("Relu", [first]), linear(x, "twin")])
    graph.outputs.append(linear(inner, "last"))
    graph.outputs += [linear(first, name) for name in more]
    return Model(held, build=lambda _: graph)


def scales(
    given: Batches,
    names: Collection[str] = READ,
    kind: str = "int",
    method: str = "mse",
    model: Model | None = None,
    limit: int = 1 << 20,
) -> dict[str, float]:
    options = RangeOptions(symmetric_rule(method, kind), limit)
    found = input_ranges(model or two_layers(), names, given, options)
    return {name: scale_of(ends, kind) for name, ends in found.items()}


def batches(masked: bool = False) -> Batches:
    runs = [{"x": RNG.standard_normal((n, COLUMNS)).astype(np.float32)} for n in (7, 1, 30)]
    for run in runs:
        run["x"][0] *= 50  # what a mask leaves out
    masks = [np.arange(len(run["x"])) > 0 if masked else None for run in runs]
    return Batches(tuple(runs), tuple(masks))


def seen(given: Batches) -> dict[str, NDArray[np.float64]]:
    """Return the inputs of each weight over all runs, rows that count."""
    kept = [
        run["x"] if mask is None else run["x"][mask]
        for run, mask in zip(given.runs, given.masks, strict=True)
    ]
    x = np.concatenate(kept).astype(np.float64)
    first, twin = (x @ WEIGHTS[name].astype(np.float32).T for name in ("first", "twin"))
    return {"first": x, "twin": x, "last": np.maximum(first, 0) * twin}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", REACH)
def test_the_whole_range(kind: str, masked: bool) -> None:
    given = batches(masked)
    found = scales(given, READ, kind, "minmax")
    assert set(found) == set(READ) and found["first"] == found["twin"]
    for name, values in seen(given).items():
        assert found[name] == np.float32(found[name])
        assert found[name] == pytest.approx(np.abs(values).max() / REACH[kind], rel=1e-6)


def test_only_what_is_asked_for() -> None:
    assert set(scales(batches(), ["last"])) == {"last"}


@pytest.mark.parametrize("kind", REACH)
def test_pieces_and_limits_change_nothing(kind: str) -> None:
    given = batches()
    whole = Batches(({"x": np.concatenate([run["x"] for run in given.runs])},), (None,))
    every = [
        scales(one, ["first"], kind, limit=limit)
        for one in (given, whole)
        for limit in (0, 1 << 20)
    ]
    assert all(found == every[0] for found in every)


def rounded(values: NDArray[np.float64], scale: float, kind: str) -> NDArray[np.float64]:
    reach = REACH[kind]
    ratio = np.clip(values / scale, -reach, reach)
    if kind == "int":
        return np.rint(ratio) * scale
    return ratio.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("kind", REACH)
@pytest.mark.parametrize("tails", [2.5, 30.0])
def test_mse_is_near_the_least_error_there_is(kind: str, tails: float) -> None:
    values = np.random.default_rng(8).standard_t(tails, 30_000).astype(np.float32)
    observed = Observed()
    observed.add(values)
    wide = values.astype(np.float64)
    largest = np.abs(wide).max() / REACH[kind]

    def error(scale: float) -> float:
        return float(np.mean((rounded(wide, scale, kind) - wide) ** 2))

    least = min(error(largest * share) for share in np.linspace(0.05, 1, 400))

    def by(method: str) -> float:
        return error(scale_of(chosen_range([observed], symmetric_rule(method, kind)), kind))

    assert by("mse") <= 1.05 * least
    assert by("mse") <= by("minmax") * (1 + 1e-6)


@pytest.mark.parametrize("method", ["average", "percentile", "entropy"])
def test_other_methods_stay_inside_the_whole_range(method: str) -> None:
    given = batches()
    whole, cut = (scales(given, method=name) for name in ("minmax", method))
    assert all(0 < cut[name] <= whole[name] for name in READ)


def test_errors_count_by_what_becomes_of_them() -> None:
    kind = "int"
    weight = RNG.standard_normal((64, 8)) * np.array([1, 1, 1, 1, 1, 1, 1, 1e-3])
    x = RNG.standard_t(3, (4000, 8)) * np.array([1, 1, 1, 1, 1, 1, 1, 40])
    values, columns = x.astype(np.float32), [tensor_from_array("w", weight.astype(np.float32))]
    counts = column_counts(columns)
    norms = (weight.astype(np.float32).astype(np.float64) ** 2).sum(0)
    np.testing.assert_allclose(counts / counts.max(), np.maximum(norms / norms.max(), 2**-20),
                               atol=2**-20)  # fmt: skip
    seen, plain = Observed(), Observed()
    seen.add(values, counts)
    plain.add(values)

    def error(observed: Observed) -> float:
        ends = chosen_range([observed], symmetric_rule("mse", kind))
        wide = values.astype(np.float64)
        return float(np.mean(((rounded(wide, scale_of(ends, kind), kind) - wide) @ weight.T) ** 2))

    assert error(seen) < 0.5 * error(plain)


def test_inputs_of_zero_have_a_scale() -> None:
    zeros = Batches(({"x": np.zeros((3, COLUMNS), np.float32)},), (None,))
    assert set(scales(zeros).values()) == {1.0}


def test_what_has_no_one_input() -> None:
    assert set(scales(batches(), WEIGHTS)) == set(READ)
    with pytest.raises(QuantizationError, match="'last': meets several inputs"):
        scales(batches(), model=two_layers(("last",)))
    nothing = Batches(batches().runs, tuple(np.zeros(len(r["x"]), bool) for r in batches().runs))
    with pytest.raises(QuantizationError, match="no row of calibration data"):
        scales(nothing)
    broken = Batches(({"x": np.full((2, COLUMNS), np.inf, np.float32)},), (None,))
    with pytest.raises(QuantizationError, match="'first': its inputs have NaN or infinite"):
        scales(broken)
    with pytest.raises(UnsupportedError, match="of float8"):
        symmetric_rule("entropy", "float")
