"""Encoders of grid types: the same bytes on every instruction set, IQ3_S after zeros, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS
from support.grid_cases import GRID_KINDS, NEED_IMPORTANCE, importances
from support.kernel_cases import needs_extension
from support.weight_rows import stress_rows

pytestmark = needs_extension
SCRIPT = """
import sys
import numpy as np
from halfbyte.kernels import cpu
with np.load(sys.argv[1]) as given:
    for case in given["cases"]:
        kind, name = case.split()
        importance = given[name] if name in given else None
        sys.stdout.buffer.write(cpu.encode(kind, given["rows"], importance).tobytes())
"""


def test_instruction_sets_agree(tmp_path: Path) -> None:
    if cpu.isa() == "scalar":
        pytest.skip("this machine has one instruction set only")
    rows = np.concatenate([rows for _, rows in stress_rows(256, 1)])
    given: dict[str, np.ndarray] = {"rows": rows}
    cases, expected = [], b""
    for kind in GRID_KINDS:
        for name, importance in importances(kind, 256):
            key = name.replace(" ", "_")
            cases.append(f"{kind} {key}")
            if importance is not None:
                given[key] = importance
            expected += cpu.encode(kind, rows, importance).tobytes()
    np.savez(tmp_path / "given.npz", cases=np.array(cases), **given)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "given.npz")],
        env={**os.environ, "HALFBYTE_ISA": "scalar"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == expected


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_equals_the_reference(kind: str) -> None:
    rows = np.concatenate([rows for _, rows in stress_rows(256, 1, seed=6)])
    reference = encoding_from_name(kind).encode_reference  # type: ignore[attr-defined]
    for name, importance in importances(kind, 256, seed=7):
        expected = reference(rows, importance)["data"]
        np.testing.assert_array_equal(cpu.encode(kind, rows, importance), expected, name)


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_rows_do_not_depend_on_each_other(kind: str) -> None:
    rows = np.random.default_rng(2).standard_normal((40, 512)).astype(np.float32)
    importance = np.random.default_rng(3).random(512).astype(np.float32)
    whole = cpu.encode(kind, rows, importance)
    single = [cpu.encode(kind, rows[i : i + 1], importance) for i in range(40)]
    np.testing.assert_array_equal(whole, np.concatenate(single))


def relative_error(rows: np.ndarray, encoded: np.ndarray) -> float:
    values = quants.dequantize(encoded, GGMLQuantizationType.IQ3_S)
    return float(((values - rows) ** 2).sum() / (rows**2).sum())


def test_iq3_s_after_a_group_of_zeros() -> None:
    rows = np.random.default_rng(4).standard_normal((2, 512)).astype(np.float32)
    rows[:, 64:96] = 0
    encoded, compatible = cpu.encode("IQ3_S", rows), cpu.encode("IQ3_S", rows, compat=True)
    assert relative_error(rows, encoded) < 0.03
    assert relative_error(rows, compatible) > 0.5
    # After 2 groups: qs, then signs, move on in the one and stay in the other.
    qs = LAYOUTS["IQ3_S"].offsets["qs"]
    np.testing.assert_array_equal(encoded[:, qs + 24 : qs + 64], compatible[:, qs + 16 : qs + 56])
    assert not encoded[:, qs + 16 : qs + 24].any()
    full = np.ascontiguousarray(rows[:, 256:])
    full[:, 64:96] = 1
    np.testing.assert_array_equal(cpu.encode("IQ3_S", full), cpu.encode("IQ3_S", full, compat=True))


@pytest.mark.parametrize("kind", sorted(NEED_IMPORTANCE & set(GRID_KINDS)))
def test_kinds_that_need_an_importance(kind: str) -> None:
    with pytest.raises(ValueError, match="needs an importance"):
        cpu.encode(kind, np.ones((1, 256), np.float32))
