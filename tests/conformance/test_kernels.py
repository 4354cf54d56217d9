"""Encodings x instruction sets: every level decodes and encodes the same bytes, sums closely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from halfbyte.kernels import cpu
from support.kernel_cases import BLOCK_KINDS, SMALL_KINDS, all_cases, int8_rounded, needs_extension
from support.weight_rows import stress_rows

pytestmark = needs_extension
K_KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
LEVELS = ("scalar", "avx2", "avx512", "neon")


def outputs() -> dict[str, np.ndarray]:
    """Return what the running level computes for every case."""
    results: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for case in all_cases():
        columns = case.values.shape[1]
        x = rng.standard_normal((5, columns)).astype(np.float32)
        results[f"decode {case.name}"] = case.weight.decode()
        for compute in ("exact", "int8"):
            result = cpu.linear(x, case.weight, compute=compute)  # type: ignore[arg-type]
            results[f"sum {compute} {case.name}"] = result
    importance = rng.random(256).astype(np.float32)
    for name, rows in stress_rows(256, rows=4):
        for kind in (*BLOCK_KINDS, *K_KINDS, *SMALL_KINDS, "float16", "bfloat16"):
            results[f"encode {kind} {name}"] = cpu.encode(kind, rows)
            results[f"encode {kind} {name} weighted"] = cpu.encode(kind, rows, importance)
    q, k = rng.standard_normal((1, 9, 6, 40)), rng.standard_normal((1, 2, 16, 40))
    q32, k32 = q.astype(np.float32), k.astype(np.float32)
    results["sum attention"] = cpu.attention(q32, k32, k32, 12)
    wide = np.linspace(-30, 30, 1000, dtype=np.float32)
    results["sum softmax"] = cpu.softmax(wide)
    results["sum silu"] = cpu.silu(wide)
    results["sum gelu"] = cpu.gelu(wide)
    results["sum gelu tanh"] = cpu.gelu(wide, "tanh")
    results["sum rms"] = cpu.rms_norm(wide, wide)
    results["sum layer"] = cpu.layer_norm(wide, wide, wide)
    return results


@pytest.fixture(scope="module")
def levels(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Return the outputs of every level that this machine has, each from its own process."""
    folder = tmp_path_factory.mktemp("levels")
    found = {}
    for level in LEVELS:
        path = folder / f"{level}.npz"
        tests = str(Path(__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {tests!r}); import runpy; "
        code += f"runpy.run_path({__file__!r}, run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "HALFBYTE_ISA": level},
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode == 0:
            found[level] = dict(np.load(path))
        else:
            assert f"HALFBYTE_ISA: {level} is not available" in done.stderr, done.stderr
    return found


def test_this_machine_has_its_own_level(levels) -> None:
    assert {"scalar", cpu.isa()} <= set(levels)


def test_levels_decode_and_encode_the_same_bytes(levels) -> None:
    reference = levels["scalar"]
    for level, results in levels.items():
        for name, result in results.items():
            if not name.startswith("sum"):
                same = result.view(np.uint8) == reference[name].view(np.uint8)
                assert same.all(), f"{level}: {name}"


def test_levels_agree_on_sums(levels) -> None:
    reference = levels["scalar"]
    for level, results in levels.items():
        for name, result in results.items():
            if name.startswith("sum"):
                size = np.abs(reference[name]).max()
                np.testing.assert_allclose(
                    result, reference[name], rtol=1e-5, atol=2e-6 * size, err_msg=f"{level} {name}"
                )


def test_levels_are_right(levels) -> None:
    for level, results in levels.items():
        rng = np.random.default_rng(0)
        for case in all_cases():
            x = rng.standard_normal((5, case.values.shape[1])).astype(np.float32)
            exact = x.astype(np.float64) @ case.values.T.astype(np.float64)
            size = np.abs(x) @ np.abs(case.values).T
            error = np.abs(results[f"sum exact {case.name}"] - exact) / size
            assert error.max() < 1e-6, f"{level} {case.name}"
            decoded = results[f"decode {case.name}"]
            assert np.array_equal(decoded, case.values), f"{level} {case.name}"
            if case.kind in {*BLOCK_KINDS, *K_KINDS, *SMALL_KINDS} - {"NVFP4"}:
                rounded = int8_rounded(x).astype(np.float64) @ case.values.T.astype(np.float64)
                error = np.abs(results[f"sum int8 {case.name}"] - rounded) / size
                assert error.max() < 1e-6, f"{level} {case.name}"


if __name__ == "__main__":
    np.savez(sys.argv[1], **outputs())
