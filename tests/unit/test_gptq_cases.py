"""GPTQ's orders, GPTAQ, and inputs that are degenerate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels import cpu
from halfbyte.quant.algorithms import best, gptq
from halfbyte.quant.algorithms.gptq import solve, solve_asymmetric
from halfbyte.quant.algorithms.gptq_problem import prepare
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.rounding_grid import GridState
from halfbyte.quant.solver import get_solver
from halfbyte.quant.solver_reference import ReferenceSolver

Array = NDArray[np.float64]
PLAIN = MethodOptions(trials=False, refine=0, tail_damping=False)
FAMILIES = ["int4-g32", "int3", "int4-g32-asym", "Q4_0", "Q4_1", "Q4_K", "Q3_K", "IQ4_XS", "IQ3_S"]
FAMILIES += ["MXFP4", "NVFP4"]


def statistics_of(x: Array, x_float: Array | None = None) -> InputStatistics:
    low, high = x.min(axis=0).astype(np.float32), x.max(axis=0).astype(np.float32)
    cross = None if x_float is None else (x_float - x).T @ x
    squares, absolute = np.square(x).sum(axis=0), np.abs(x).sum(axis=0)
    return InputStatistics(x.T @ x, cross, squares, absolute, low, high, len(x))


def inputs(tokens: int, columns: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(columns // 4, columns)) * np.exp(random.normal(size=columns))
    noisy: Array = random.normal(size=(tokens, columns // 4)) @ mixed
    return noisy + 0.1 * random.normal(size=(tokens, columns))


def weights(rows: int, columns: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)


def decoded(name: str, parts: object, columns: int) -> NDArray[np.float32]:
    values = encoding_from_name(name).decode(parts, columns)  # type: ignore[arg-type]
    return values.astype(np.float32)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", ["one token", "constant", "zero columns", "zero weights", "alike"])
def test_degenerate_inputs_end_no_worse_than_rounding(name: str, case: str) -> None:
    x, weight = inputs(300, 256), weights(3, 256)
    if case == "one token":
        x = x[:1]
    elif case == "constant":
        x[:, 3:40] = 1.0
    elif case == "zero columns":
        x[:, ::3] = 0.0
    elif case == "zero weights":
        weight[:, :128] = 0.0
        weight[1] = 0.0
    else:
        weight[:] = 0.25
    solved = solve(
        weight, encoding_from_name(name), statistics_of(x), MethodOptions(), get_solver()
    )
    values = decoded(name, solved.parts, 256)
    assert np.isfinite(values).all()
    gap = (weight - values).astype(np.float64) @ x.T
    # The error is a float32 quadratic form: terms may cancel down to its last digits.
    floor = 1e-6 * np.square(weight - values).sum() * np.square(x).sum() / len(x)
    assert solved.error == pytest.approx(np.square(gap).sum() / len(x), rel=1e-3, abs=floor)
    assert solved.error <= solved.rtn_error


def test_columns_without_input_are_rounded_to_nearest() -> None:
    x, weight = inputs(300, 64), weights(4, 64)
    x[:, 32:] = 0.0
    encoding = encoding_from_name("int4-g32")
    options = replace(PLAIN, group_search=False)
    solved = solve(weight, encoding, statistics_of(x), options, get_solver())
    plain = encoding.decode(encoding.encode(weight), 64)
    np.testing.assert_array_equal(encoding.decode(solved.parts, 64)[:, 32:], plain[:, 32:])


@pytest.mark.parametrize("name", ["int4-g32", "int3-g32-asym"])
def test_only_best_searches_ranges_unless_asked(name: str) -> None:
    encoding, weight, statistics = (
        encoding_from_name(name),
        weights(6, 64),
        statistics_of(inputs(300, 64)),
    )
    found = {
        (algorithm, asked): encoding.decode(
            algorithm(weight, encoding, statistics, options, get_solver()).parts, 64
        ).tobytes()
        for algorithm in (solve, best.solve)
        for asked in (None, False, True)
        for options in [MethodOptions(group_search=asked)]
    }
    assert found[solve, None] == found[solve, False] != found[solve, True]
    assert found[best.solve, None] == found[best.solve, True] != found[best.solve, False]


@pytest.mark.parametrize("name", ["Q4_K", "int4-g32", "IQ2_XXS"])
def test_inputs_that_are_all_zero_give_rounding_to_nearest_and_say_so(name: str) -> None:
    encoding, weight = encoding_from_name(name), weights(4, 256)
    statistics = statistics_of(np.zeros((5, 256)))
    solved = solve(weight, encoding, statistics, MethodOptions(), get_solver())
    assert "rounded to nearest" in solved.note
    needed = np.ones(256, np.float32) if encoding.needs_importance else None
    for part, values in encoding.encode(weight, needed).items():
        np.testing.assert_array_equal(solved.parts[part], values)


def test_numbers_that_are_not_finite_are_refused() -> None:
    encoding = encoding_from_name("Q4_0")
    x, weight = inputs(20, 64), weights(2, 64)
    x[3, 5] = np.inf
    with (
        pytest.raises(QuantizationError, match="inputs are NaN or infinite"),
        np.errstate(all="ignore"),
    ):
        solve(weight, encoding, statistics_of(x), MethodOptions(), get_solver())
    weight[1, 1] = np.nan
    with pytest.raises(QuantizationError, match="NaN or infinite weights"):
        solve(weight, encoding, statistics_of(inputs(20, 64)), MethodOptions(), get_solver())
    bare = replace(statistics_of(inputs(20, 64)), hessian=None)
    with pytest.raises(QuantizationError, match="statistics hold no products"):
        solve(weights(2, 64), encoding, bare, MethodOptions(), get_solver())
    with pytest.raises(QuantizationError, match="do not divide into blocks"):
        solve(weights(2, 40), encoding, statistics_of(inputs(20, 40)), PLAIN, get_solver())


@pytest.mark.parametrize("name", ["int4-g32", "int3-g32-asym", "int4-g48-fzp-f32"])
def test_a_short_last_group(name: str) -> None:
    x, weight = inputs(200, 100), weights(5, 100)
    solved = solve(
        weight, encoding_from_name(name), statistics_of(x), MethodOptions(), get_solver()
    )
    assert solved.error < 0.8 * solved.rtn_error


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("name", ["int4-g32-f32", "int4-g32-bf16", "int4-g32-asym-f32", "int3-f32"])
def test_scale_of_weights_and_inputs_changes_nothing(name: str, scale: float) -> None:
    encoding = encoding_from_name(name)
    x, weight = inputs(200, 64), weights(5, 64)
    factor = np.float32(2.0 ** round(np.log2(scale)))
    one = solve(weight, encoding, statistics_of(x), MethodOptions(), get_solver())
    other = solve(
        weight * factor, encoding, statistics_of(x / scale), MethodOptions(), get_solver()
    )
    np.testing.assert_array_equal(one.parts["codes"], other.parts["codes"])


def test_a_raised_damping_is_told() -> None:
    x = np.repeat(inputs(2, 64), 4, axis=0)
    options = replace(PLAIN, damping=0.0)
    solved = solve(
        weights(2, 64), encoding_from_name("Q4_0"), statistics_of(x), options, get_solver()
    )
    assert solved.note.startswith("damping raised from 0 to ")


def test_order_by_diagonal_keeps_groups_in_place() -> None:
    x, weight = inputs(300, 256), weights(8, 256)
    x *= np.exp(np.random.default_rng(5).normal(size=256))
    for name in ("int3-g32", "Q3_K", "Q4_0"):
        encoding = encoding_from_name(name)
        options = replace(PLAIN, act_order="static")
        solved = solve(weight, encoding, statistics_of(x), options, get_solver())
        assert solved.error < 0.5 * solved.rtn_error
    # The same as if the columns had been given in that order, one group for the row.
    order = np.argsort(-np.square(x).sum(axis=0), kind="stable")
    encoding = encoding_from_name("int3")
    solved = solve(weight, encoding, statistics_of(x), options, get_solver())
    sorted_ones = solve(
        np.ascontiguousarray(weight[:, order]),
        encoding,
        statistics_of(x[:, order]),
        PLAIN,
        get_solver(),
    )
    np.testing.assert_array_equal(
        encoding.unpack(solved.parts, 256).codes[:, order],
        encoding.unpack(sorted_ones.parts, 256).codes,
    )


def test_groups_of_sorted_columns_are_stored() -> None:
    x, weight = inputs(300, 128), weights(8, 128)
    encoding = encoding_from_name("int3-g32-actorder")
    order = np.argsort(-np.square(x).sum(axis=0), kind="stable")
    for options in (PLAIN, MethodOptions()):
        solved = solve(weight, encoding, statistics_of(x), options, get_solver())
        assert (solved.parts["g_idx"][order] == np.arange(128) // 32).all()
        assert solved.error < 0.5 * solved.rtn_error
    told = solve(
        weight,
        encoding_from_name("Q4_0"),
        statistics_of(x),
        replace(PLAIN, act_order="group"),
        get_solver(),
    )
    assert "no group of columns" in told.note


def paper_gptaq(weight: Array, x: Array, x_float: Array, alpha: float, damping: float) -> Array:
    """Round to integers, column by column, as the paper derives it for one column at a time.

    With q_k fixed, the columns left are moved so that their outputs make up for the error of
    column k and for what the float inputs say of it: least squares over the columns left.
    """
    left = weight.copy()
    rounded = np.zeros_like(weight)
    hessian = x.T @ x / len(x)
    hessian[np.diag_indices(len(hessian))] += damping * np.diag(hessian).mean()
    cross = alpha * (x_float - x).T @ x / len(x)
    for k in range(weight.shape[1]):
        rounded[:, k] = np.clip(np.rint(left[:, k] / 0.02), -8, 7) * 0.02
        inverse = np.linalg.inv(hessian[k + 1 :, k + 1 :]) if k + 1 < len(hessian) else None
        if inverse is None:
            break
        error = left[:, k] - rounded[:, k]
        pull = error[:, None] * hessian[k, k + 1 :] + left[:, [k]] * cross[k, k + 1 :]
        left[:, k + 1 :] += pull @ inverse
    return rounded


def test_gptaq_is_the_papers() -> None:
    x = inputs(200, 32)
    x_float = x + 0.3 * inputs(200, 32, 9)
    weight = weights(40, 32)
    encoding = encoding_from_name("int4-f32")
    state = encoding.fit(np.full((40, 32), -0.16, np.float32))
    assert (np.abs(state.scale) == np.float32(0.02)).all()
    expected = paper_gptaq(weight.astype(np.float64), x, x_float, 0.25, 0.01)
    problem = prepare(encoding, statistics_of(x, x_float), PLAIN, get_solver(), asymmetric=True)
    assert problem is not None
    grids = GridState(encoding, state, problem.order, problem.by_group)
    columns, codes = np.ascontiguousarray(weight.T[problem.order]), np.zeros((32, 40), np.int16)
    get_solver().sweep(columns, problem.factor, 0, 32, grids.grid, codes, problem.cross)
    values = encoding.decode(grids.pack(codes), 32)
    wrong = (np.abs(values - expected) > 1e-4).any(axis=1)
    assert wrong.sum() <= 1


@pytest.mark.parametrize("name", ["int4-g32", "Q4_K", "Q4_0", "IQ3_XXS"])
def test_gptaq_comes_nearer_to_the_float_models_output(name: str) -> None:
    x = inputs(600, 256)
    x_float = x + 0.05 * inputs(600, 256, 9) + 0.1 * x[:, ::-1]
    weight, encoding = weights(8, 256), encoding_from_name(name)
    options = MethodOptions(alpha=1.0, tail_damping=False)
    statistics = statistics_of(x, x_float)
    both = [
        method(weight, encoding, statistics, options, get_solver())
        for method in (solve, solve_asymmetric)
    ]
    wanted = x_float @ weight.T.astype(np.float64)
    errors = [
        np.square(x @ decoded(name, solved.parts, 256).T.astype(np.float64) - wanted).sum()
        for solved in both
    ]
    assert errors[1] < 0.8 * errors[0]
    with pytest.raises(QuantizationError, match="float model's inputs"):
        solve_asymmetric(weight, encoding, statistics_of(x), options, get_solver())


@pytest.mark.parametrize("name", FAMILIES)
def test_same_bytes_for_any_number_of_threads_and_rows_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = inputs(300, 256), weights(40, 256)
    statistics, encoding = statistics_of(x), encoding_from_name(name)
    before = cpu.threads() if cpu.available() else None
    found = []
    try:
        for threads, values in ((1, 1 << 23), (2, 1 << 23), (2, 256 * 16)):
            monkeypatch.setattr(gptq, "CHUNK_VALUES", values)
            monkeypatch.setattr(gptq, "TRIAL_VALUES", values)
            solver = get_solver(threads=threads)
            found.append(solve(weight, encoding, statistics, MethodOptions(), solver).parts)
    finally:
        if before is not None:
            cpu.set_threads(before)
    for other in found[1:]:
        for part, held in found[0].items():
            np.testing.assert_array_equal(other[part], held)


def test_plain_numpy_comes_as_near() -> None:
    x, weight = inputs(300, 256), weights(6, 256)
    for name in ("Q4_K", "int4-g32", "IQ4_NL"):
        encoding = encoding_from_name(name)
        errors = [
            solve(weight, encoding, statistics_of(x), MethodOptions(), solver).error
            for solver in (get_solver(), ReferenceSolver())
        ]
        assert errors[0] == pytest.approx(errors[1], rel=0.1)
