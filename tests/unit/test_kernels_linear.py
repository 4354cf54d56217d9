"""Linear layers: values, and bits that depend neither on the batch nor on the threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from halfbyte.kernels import cpu
from support.kernel_cases import (
    Case,
    affine_case,
    all_cases,
    block_case,
    dense_case,
    int8_rounded,
    needs_extension,
)

pytestmark = needs_extension
CASES = all_cases()


@pytest.fixture(autouse=True)
def threads():
    before = cpu.threads()
    yield
    cpu.set_threads(before)


def activations(rows: int, columns: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def close_to(result: np.ndarray, x: np.ndarray, values: np.ndarray) -> None:
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(values).T.astype(np.float64)
    assert np.all(np.abs(result - exact) <= 1e-6 * size + 1e-30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("m", [1, 2, 6, 17])
def test_exact_values(case: Case, m: int) -> None:
    x = activations(m, case.values.shape[1])
    close_to(cpu.linear(x, case.weight), x, case.values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("m", [1, 17])
def test_int8_values(case: Case, m: int) -> None:
    x = activations(m, case.values.shape[1])
    group = case.affine.get("group_size", 32)
    regular = "g_idx" not in case.affine and (group == 0 or group % 32 == 0)
    takes_int8 = case.kind in cpu.CLAIMS["linear_int8"] and regular and x.shape[1] % 32 == 0
    seen = int8_rounded(x) if takes_int8 else x
    close_to(cpu.linear(x, case.weight, compute="int8"), seen, case.values)


@pytest.mark.parametrize("compute", ["exact", "int8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_depend_on_neither_batch_nor_threads(case: Case, compute) -> None:
    x = activations(17, case.values.shape[1])
    cpu.set_threads(2)
    together = cpu.linear(x, case.weight, compute=compute)
    for rows in (slice(0, 1), slice(4, 6), slice(3, 9), slice(2, 15)):
        alone = cpu.linear(np.ascontiguousarray(x[rows]), case.weight, compute=compute)
        np.testing.assert_array_equal(alone, together[rows])
    cpu.set_threads(1)
    np.testing.assert_array_equal(cpu.linear(x, case.weight, compute=compute), together)


def test_many_tiles_of_rows_and_columns() -> None:
    case = block_case("Q8_0", 300, 1536)
    x = activations(400, 1536)
    for compute in ("exact", "int8"):
        result = cpu.linear(x, case.weight, compute=compute)
        close_to(result, int8_rounded(x) if compute == "int8" else x, case.values)
        np.testing.assert_array_equal(cpu.linear(x[377], case.weight, compute=compute), result[377])


def test_exact_over_blocks_equals_dense_decoded_values() -> None:
    case = block_case("Q4_0", 48, 128)
    x = activations(5, 128)
    dense = cpu.LinearWeight("float32", case.values, 48, 128)
    np.testing.assert_array_equal(cpu.linear(x, case.weight), cpu.linear(x, dense))


@pytest.mark.parametrize("compute", ["exact", "int8"])
@pytest.mark.parametrize("m", [1, 9])
def test_weights_that_share_x(compute, m: int) -> None:
    cases = [block_case("Q4_0", 70, 96), dense_case("float16", 33, 96), block_case("Q8_0", 5, 96)]
    biases = [activations(1, 70)[0], None, activations(1, 5)[0]]
    x = activations(m, 96).reshape(1, m, 96)
    results = cpu.linear(x, [case.weight for case in cases], biases, compute)
    for case, bias, result in zip(cases, biases, results, strict=True):
        alone = cpu.linear(x, case.weight, bias, compute)
        assert result.shape == (1, m, len(case.values))
        np.testing.assert_array_equal(result, alone)
        plain = cpu.linear(x, case.weight, None, compute)
        np.testing.assert_array_equal(alone, plain if bias is None else plain + bias)


@pytest.mark.parametrize("compute", ["exact", "int8"])
@pytest.mark.parametrize("m", [1, 13])
def test_swiglu_is_linear_then_swiglu(compute, m: int) -> None:
    gate, up = block_case("Q4_0", 130, 64, 1), block_case("Q4_0", 130, 64, 2)
    bias = activations(1, 130)[0]
    x = activations(m, 64)
    fused = cpu.linear_swiglu(x, gate.weight, up.weight, compute, gate_bias=bias)
    g, u = cpu.linear(x, [gate.weight, up.weight], [bias, None], compute)
    np.testing.assert_array_equal(fused, cpu.swiglu(g, u))


def test_out_is_written_and_returned() -> None:
    case = block_case("Q8_0", 8, 32)
    x = activations(2, 32)
    out = np.empty((2, 8), np.float32)
    assert cpu.linear(x, case.weight, out=out) is out
    np.testing.assert_array_equal(out, cpu.linear(x, case.weight))
    outs = [np.empty((2, 8), np.float32)]
    assert cpu.linear(x, [case.weight], out=outs)[0] is outs[0]


def test_zero_and_extreme_activations() -> None:
    case = block_case("Q8_0", 8, 64)
    x = np.zeros((2, 64), np.float32)
    x[1, 3] = np.float32(1e30)
    result = cpu.linear(x, case.weight, compute="int8")
    assert not result[0].any()
    np.testing.assert_allclose(result[1], case.values[:, 3] * 1e30, rtol=1e-5)
    assert cpu.linear(x[:0], case.weight).shape == (0, 8)


def test_callers_on_several_threads() -> None:
    case = affine_case(4, 257, 512, 64)
    x = activations(7, 512)
    cpu.set_threads(2)
    expected = cpu.linear(x, case.weight, compute="int8")
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda _: cpu.linear(x, case.weight, compute="int8"), range(64))
        assert all(np.array_equal(run, expected) for run in runs)


FORKED = """
import os, numpy as np
from halfbyte.kernels import cpu
cpu.set_threads(3)
weight = cpu.LinearWeight("float32", np.ones((900, 64), np.float32), 900, 64)
x = np.ones((3, 64), np.float32)
assert (cpu.linear(x, weight) == 64).all()
child = os.fork()
if child == 0:
    good = (cpu.linear(x, weight) == 64).all() and cpu.threads() == 3
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
assert (cpu.linear(x, weight) == 64).all()
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_the_pool_survives_a_fork_and_the_exit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_thread_counts() -> None:
    cpu.set_threads(5)
    assert cpu.threads() == 5
    cpu.set_threads(0)
    assert cpu.threads() == 1


X = np.zeros((2, 64), np.float32)
WEIGHT_ROWS = 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:, :32].copy()}, "linear: weight has 64 columns, x has 32; they must agree"),
        ({"x": X[:, ::2]}, "linear: x is not C-contiguous, required a C-contiguous float32 array"),
        ({"x": X.astype(np.float16)}, "linear: x is of format e, required a C-contiguous float32"),
        ({"bias": np.zeros(3, np.float32)}, "linear: bias has shape [3], required 8 elements"),
        ({"out": np.zeros((2, 7), np.float32)}, "linear: out has shape [2, 7], required 16 elem"),
        ({"compute": "fast"}, "compute 'fast' is unknown, required 'exact' or 'int8'"),
        ({"out": 5}, "linear: out is a int without such memory, required a writable C-contiguous"),
        ({"x": np.float32(1).reshape(())}, "linear: x is 0-d, required [..., columns]"),
        ({"x": X[:, :0].copy()}, "linear: x has no columns, required at least one"),
    ],
)
def test_linear_rejects(change: dict, message: str) -> None:
    weight = block_case("Q4_0", WEIGHT_ROWS, 64).weight
    with pytest.raises(ValueError) as caught:
        cpu.linear(**{"x": X, "weight": weight, **change})
    assert message in str(caught.value)


def test_sequences_must_agree() -> None:
    weight = block_case("Q4_0", 8, 64).weight
    with pytest.raises(ValueError, match="2 weights, 1 biases and 2 outputs"):
        cpu.linear(X, [weight, weight], [None])
    other = block_case("Q4_0", 9, 64).weight
    with pytest.raises(ValueError, match="exactly two weights"):
        cpu.linear_swiglu(X, weight, other)


def test_a_read_only_output_is_refused() -> None:
    out = np.zeros((2, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="required a writable C-contiguous float32 array"):
        cpu.linear(X, block_case("Q4_0", 8, 64).weight, out=out)
